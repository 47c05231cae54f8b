import { styleText } from 'node:util';

/** What the demo shows a person; with `--json` it stays silent and only the figures are printed at the end. */
export class Screen {
  readonly #isSilent: boolean;
  readonly #isLive = process.stdout.isTTY;
  #hasLiveLine = false;
  #lastLive = '';

  constructor({ isSilent }: { isSilent: boolean }) {
    this.#isSilent = isSilent;
  }

  heading(text: string): void {
    this.#write(`\n${styleText('bold', text)}\n`);
  }

  line(text: string): void {
    this.#write(`  ${text}\n`);
  }

  /** A line that is written over by the next; without a terminal each change is a line of its own. */
  live(text: string): void {
    if (this.#isSilent || text === this.#lastLive) return;
    this.#lastLive = text;
    if (!this.#isLive) return this.line(styleText('dim', text));
    process.stdout.write(`\r\x1b[2K  ${styleText('dim', text)}`);
    this.#hasLiveLine = true;
  }

  table(rows: readonly (readonly string[])[]): void {
    const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
    for (const row of rows)
      this.line(
        row
          .map((cell, column) => cell.padEnd(widths[column] ?? 0))
          .join('  ')
          .trimEnd(),
      );
  }

  #write(text: string): void {
    if (this.#isSilent) return;
    if (this.#hasLiveLine) process.stdout.write('\r\x1b[2K');
    this.#hasLiveLine = false;
    process.stdout.write(text);
  }
}

export const gb = (value: number): string => `${value.toFixed(1)} GB`;
export const seconds = (value: number): string => `${value.toFixed(1)} s`;
