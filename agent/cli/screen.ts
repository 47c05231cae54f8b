/** Where a command writes. `columns` is undefined where it is no terminal: then nothing is wrapped or cut. */
export type Screen = { columns: number | undefined; write: (text: string) => void };

export { clipped, gib, tableLines, timeText, wrapped } from '../../shared/screen-text.ts';
