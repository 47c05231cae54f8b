/** PURE. Text for a screen: columns, lines that fit, and figures as people read them. */

/** One line for each row, its cells in columns as wide as their widest; the last one is not padded. */
export function tableLines(rows: readonly (readonly string[])[], { indent = '' } = {}): string[] {
  const widths = (rows[0] ?? []).map((_, at) => Math.max(...rows.map((row) => harmless(row[at] ?? '').length)));
  return rows.map((row) => {
    const cells = row.map((cell, at) =>
      at < row.length - 1 ? harmless(cell).padEnd(widths[at] ?? 0) : harmless(cell),
    );
    return `${indent}${cells.join('  ')}`.trimEnd();
  });
}

/** Words on lines of at most so many columns. */
export function wrapped(
  text: string,
  { columns, indent = '' }: { columns: number | undefined; indent?: string },
): string[] {
  const lines: string[] = [];
  let line = '';
  for (const word of harmless(text).split(/\s+/).filter(Boolean)) {
    const longer = line === '' ? `${indent}${word}` : `${line} ${word}`;
    if (columns !== undefined && longer.length > columns && line !== '') {
      lines.push(line);
      line = `${indent}${word}`;
    } else line = longer;
  }
  return [...lines, ...(line === '' ? [] : [line])].map((one) => clipped(one, columns));
}

export function clipped(line: string, columns: number | undefined): string {
  const clean = harmless(line);
  return columns === undefined || clean.length <= columns ? clean : `${clean.slice(0, columns - 1)}…`;
}

export function gib(mib: number | null): string {
  return mib === null ? '?' : (mib / 1024).toFixed(1);
}

/** `850 ms`, `7.4 s`, `74 s`, `12 min`, `3.5 h`. */
export function timeText(ms: number): string {
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  if (ms < 10_000) return `${(ms / 1_000).toFixed(1)} s`;
  if (ms < 120_000) return `${Math.round(ms / 1_000)} s`;
  if (ms < 7_200_000) return `${Math.round(ms / 60_000)} min`;
  return `${(ms / 3_600_000).toFixed(1)} h`;
}

/** Control characters of a text from elsewhere must not move the terminal's cursor. */
function harmless(text: string): string {
  return text.replace(/\p{Cc}/gu, ' ');
}
