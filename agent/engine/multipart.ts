import { randomUUID } from 'node:crypto';

export type FilePart = { name: string; fileName: string; bytes: Buffer };

/** A multipart/form-data body. Values are sent as UTF-8; names are ours and need no escaping. */
export function multipart(
  fields: Record<string, string | undefined>,
  files: readonly FilePart[],
): { headers: Record<string, string>; body: Buffer } {
  const boundary = `gantry-${randomUUID()}`;
  const parts: Buffer[] = [];
  for (const [name, value] of Object.entries(fields)) {
    if (value === undefined) continue;
    parts.push(Buffer.from(`--${boundary}\r\nContent-Disposition: form-data; name="${name}"\r\n\r\n${value}\r\n`));
  }
  for (const { name, fileName, bytes } of files) {
    const head = `Content-Disposition: form-data; name="${name}"; filename="${fileName}"\r\nContent-Type: image/png`;
    parts.push(Buffer.from(`--${boundary}\r\n${head}\r\n\r\n`), bytes, Buffer.from('\r\n'));
  }
  parts.push(Buffer.from(`--${boundary}--\r\n`));
  return { headers: { 'content-type': `multipart/form-data; boundary=${boundary}` }, body: Buffer.concat(parts) };
}
