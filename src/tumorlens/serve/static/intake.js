// Files from a choice, a drop or the clipboard → jobs for the service.

const CLUTTER = /^(\.|__MACOSX$|Thumbs\.db$|desktop\.ini$)/;

/** Files of a drop, those in folders too. */
export async function dropped(transfer) {
  // Entries must be asked for before the first await: the browser forgets them after the event.
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

/** Pictures in a paste; they have no names of their own. */
export function pasted(clipboard) {
  const named = (file) => file.name && !/^image\.\w+$/.test(file.name);
  return [...clipboard.files].map((file, i) =>
    (named(file) ? file : new File([file], `pasted picture${i ? ` ${i + 1}` : ""}`, { type: file.type })));
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

/** Told by the content, as the service does. */
async function kindOf(file) {
  try {
    const head = new Uint8Array(await file.slice(0, 132).arrayBuffer());
    const text = (from, to) => String.fromCharCode(...head.subarray(from, to));
    if (text(0, 4) === "PK\x03\x04" || text(0, 4) === "PK\x05\x06") return "zip";
    return text(128, 132) === "DICM" ? "dicom" : "file";
  } catch {
    return "file"; // sending it tells why it cannot be read
  }
}
