/** PURE. Escape sequences of terminals, then every other control character but line feed and tab. */
const ANSI = /(?:\u001b\[|\u009b)[0-?]*[ -/]*[@-~]|\u001b\][^\u0007\u001b]*(?:\u0007|\u001b\\)?|\u001b[@-Z\\-_]/g;
const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;

/** Text of an agent, an engine or a file as data: it cannot move a cursor, and is at most `max` characters long. */
export function cleanText(text: string, max: number): string {
  const clean = text.replaceAll('\r\n', '\n').replace(ANSI, '').replace(CONTROL, '');
  return clean.length <= max ? clean : `${cutBetweenCharacters(clean, max - 1)}…`;
}

/** Every text in an answer, names included, cleaned. */
export function cleanDeep(value: unknown, max: number): unknown {
  if (typeof value === 'string') return cleanText(value, max);
  if (Array.isArray(value)) return value.map((item) => cleanDeep(item, max));
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .filter(([, item]) => item !== undefined)
      .map(([key, item]) => [cleanText(key, 200), cleanDeep(item, max)]),
  );
}

function cutBetweenCharacters(text: string, at: number): string {
  const cut = text.slice(0, at);
  return /[\ud800-\udbff]$/.test(cut) ? cut.slice(0, -1) : cut;
}
