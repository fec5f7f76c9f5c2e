"""/docs: the OpenAPI description as one plain page. The usual viewers load scripts from other hosts."""

from __future__ import annotations

import json
from html import escape
from typing import Any


def docs_page(description: dict[str, Any]) -> str:
    """HTML without scripts, in the style of the main page."""
    about = description["info"]
    parts = [
        f"<h1>{escape(about['title'])} {escape(about['version'])}</h1><p>{escape(about['description'])}</p>"
        '<p><a href="openapi.json">openapi.json</a> · <a href=".">classify in the browser</a></p>'
    ]
    for path, methods in description["paths"].items():
        for method, route in methods.items():
            parts.append(_route(path, method, route))
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(about["title"])} API</title>'
        '<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="style.css"></head>'
        f"<body><main>{body}</main></body></html>\n"
    )


def _route(path: str, method: str, route: dict[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{escape(item['name'])}</code></td><td>{escape(item.get('description', ''))}</td>"
        f"<td><code>{escape(json.dumps(item['schema'].get('default')))}</code></td></tr>"
        for item in route.get("parameters", [])
    ]
    table = f"<table><tr><th>Parameter</th><th>Meaning</th><th>Default</th></tr>{''.join(rows)}</table>" if rows else ""
    body = route.get("requestBody")
    body_text = f"<p>Body: {escape(body['description'])}</p>" if body else ""
    responses = "".join(
        f"<li><code>{status}</code> {escape(item['description'])}</li>" for status, item in route["responses"].items()
    )
    example = route.get("x-example")
    shown = f"<pre><code>{escape(example)}</code></pre>" if example else ""
    return (
        f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(route.get('description', ''))}</p>"
        f"{body_text}{table}{shown}<ul>{responses}</ul>"
    )
