import type { Answer } from './ask.ts';

/** What a piece of text is for a person; which colour that is, is decided here. */
export type Style = 'good' | 'bad' | 'faint';

/** One of the two streams of a command. */
export type Paper = {
  /** Undefined where it is no terminal: then nothing is wrapped or cut, and progress is plain lines. */
  columns: number | undefined;
  write: (text: string) => void;
  paint: (style: Style, text: string) => string;
};

/** Where a command writes: data on stdout, talk on stderr. */
export type Screen = {
  out: Paper;
  /** Silent under --quiet. */
  talk: Paper;
  /** What is said even then. */
  complain: (text: string) => void;
  isJson: boolean;
};

export type ScreenFlags = { json?: boolean; quiet?: boolean; color?: boolean };

/** `auto` is colour on a terminal and none elsewhere. */
export type ColourWish = 'always' | 'auto' | 'never';

const CODES: Record<Style, [on: number, off: number]> = { good: [32, 39], bad: [31, 39], faint: [2, 22] };

export function openScreen({ json, quiet, color }: ScreenFlags, wish: ColourWish): Screen {
  const colour = color === false ? 'never' : wish;
  const { stdout, stderr } = process;
  return {
    out: paper(stdout, { colour, isQuiet: false }),
    talk: paper(stderr, { colour, isQuiet: quiet === true }),
    complain: (text) => void stderr.write(text),
    isJson: json === true,
  };
}

export function printJson({ out }: Screen, value: unknown): void {
  out.write(`${JSON.stringify(value, undefined, 2)}\n`);
}

/** What a tool answered, for a program. */
export function printAnswer(screen: Screen, { json }: Answer): void {
  printJson(screen, { schema: 1, ...json });
}

export function printLines({ out }: Screen, lines: readonly string[]): void {
  out.write(lines.map((line) => `${line}\n`).join(''));
}

function paper(stream: NodeJS.WriteStream, o: { colour: ColourWish; isQuiet: boolean }): Paper {
  const isColoured = o.colour === 'always' || (o.colour === 'auto' && stream.isTTY);
  return {
    // A terminal that does not tell its width has none that could be trusted.
    columns: stream.isTTY && stream.columns > 0 ? stream.columns : undefined,
    write: o.isQuiet ? () => undefined : (text) => void stream.write(text),
    paint: (style, text) => {
      const [on, off] = CODES[style];
      return isColoured && text !== '' ? `\u001b[${on}m${text}\u001b[${off}m` : text;
    },
  };
}
