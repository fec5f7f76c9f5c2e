// From chosen, dropped or pasted files to jobs for the service.

const CLUTTER = /^(\.|__MACOSX$|Thumbs\.db$|desktop\.ini$)/;

/** Dropped files, including those in folders. */
export async function dropped(transfer) {
  // Get all entries before the first await: the browser drops them after the event.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const files = [];
  for (const entry of entries) await walk(entry, files);
  return files;
}

async function walk(entry, files) {
  if (entry.isFile) {
    files.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
    return;
  }
  const reader = entry.createReader();
  const found = [];
  const some = () => new Promise((resolve, reject) => reader.readEntries(resolve, reject));
  for (let part; (part = await some()).length;) found.push(...part);
  found.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  for (const inner of found) if (!CLUTTER.test(inner.name)) await walk(inner, files);
}

/** Pasted images, which have no names of their own. */
export function pasted(clipboard) {
  const named = (file) => file.name && !/^image\.\w+$/.test(file.name);
  return [...clipboard.files].map((file, i) =>
    (named(file) ? file : new File([file], `pasted image${i ? ` ${i + 1}` : ""}`, { type: file.type })));
}

/** Jobs `{name, kind, files}`: each zip, each other file, and several DICOM files together, as they may be a series. */
export async function jobsOf(files) {
  const kinds = await Promise.all(files.map(kindOf));
  const dicom = files.filter((_, i) => kinds[i] === "dicom");
  const jobs = [];
  files.forEach((file, i) => {
    const kind = kinds[i] === "zip" ? "zip" : "file";
    if (kinds[i] !== "dicom" || dicom.length === 1) jobs.push({ name: file.name, kind, files: [file] });
    else if (file === dicom[0]) jobs.push({ name: `${dicom.length} DICOM files`, kind: "several", files: dicom });
  });
  return jobs;
}

/** Detected from the content, as the service does. */
async function kindOf(file) {
  try {
    const head = new Uint8Array(await file.slice(0, 132).arrayBuffer());
    const text = (from, to) => String.fromCharCode(...head.subarray(from, to));
    if (text(0, 4) === "PK\x03\x04" || text(0, 4) === "PK\x05\x06") return "zip";
    return text(128, 132) === "DICM" ? "dicom" : "file";
  } catch {
    return "file"; // sending it reports why it could not be read
  }
}
