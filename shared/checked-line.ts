import { crc32 } from 'node:zlib';

/** A line ends with it: `,"crc":123}`, over all that is before it. */
const CHECKED = /^(.*),"crc":(\d{1,10})\}$/s;
/** The sum was hit: another name of three letters, which no line of ours ends with, or something that is no number. */
const HIT = /,"[^"]{3}":\d{1,10}\}$|,"crc":/s;

/** One line of a file that grows by lines: JSON that tells whether it was damaged, and that every reader of JSON reads. */
export function toCheckedLine(value: Readonly<Record<string, unknown>>): string {
  const json = JSON.stringify(value).slice(0, -1);
  return `${json},"crc":${crc32(json)}}\n`;
}

/** What the line says; undefined where a bit of it is not what was written. Lines of releases that wrote no sum are taken as they are. */
export function readCheckedLine(line: string): unknown {
  const [, json, sum] = CHECKED.exec(line) ?? [];
  try {
    if (json === undefined) return HIT.test(line) ? undefined : (JSON.parse(line) as unknown); // which returns `any`
    return crc32(json) === Number(sum) ? (JSON.parse(`${json}}`) as unknown) : undefined;
  } catch {
    return undefined;
  }
}
