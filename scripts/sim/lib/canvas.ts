import { GLYPH_HEIGHT, GLYPH_WIDTH, glyphRows } from './bitmap-font.ts';

export type Colour = readonly [red: number, green: number, blue: number];

/** RGB pixels to draw on; everything outside the edges is cut off. */
export class Canvas {
  readonly width: number;
  readonly height: number;
  readonly pixels: Uint8Array;

  constructor({ width, height, pixels }: { width: number; height: number; pixels?: Uint8Array }) {
    this.width = width;
    this.height = height;
    this.pixels = pixels ?? new Uint8Array(width * height * 3);
  }

  /** Mixes the colour in: opacity 1 covers, 0 leaves all as it was. */
  fillRectangle(x: number, y: number, width: number, height: number, colour: Colour, opacity = 1): void {
    const top = Math.max(0, Math.round(y));
    const bottom = Math.min(this.height, Math.round(y + height));
    for (let row = top; row < bottom; row += 1) this.#fillRow(row, x, x + width, colour, opacity);
  }

  fillCircle(centreX: number, centreY: number, radius: number, colour: Colour, opacity = 1): void {
    const top = Math.max(0, Math.ceil(centreY - radius));
    const bottom = Math.min(this.height, Math.floor(centreY + radius) + 1);
    for (let row = top; row < bottom; row += 1) {
      const half = Math.sqrt(Math.max(0, radius ** 2 - (row - centreY) ** 2));
      this.#fillRow(row, centreX - half, centreX + half, colour, opacity);
    }
  }

  /** One line of text; `unit` is the size of one dot of a letter. */
  drawText(text: string, x: number, y: number, unit: number, colour: Colour): void {
    [...text].forEach((character, index) => {
      const left = x + index * advance(unit);
      glyphRows(character).forEach((bits, row) => {
        for (let column = 0; column < GLYPH_WIDTH; column += 1) {
          if ((bits & (1 << (GLYPH_WIDTH - 1 - column))) === 0) continue;
          this.fillRectangle(left + column * unit, y + row * unit, unit, unit, colour);
        }
      });
    });
  }

  #fillRow(row: number, from: number, to: number, [red, green, blue]: Colour, opacity: number): void {
    const left = Math.max(0, Math.round(from));
    const right = Math.min(this.width, Math.round(to));
    const rest = 1 - opacity;
    for (let at = (row * this.width + left) * 3; at < (row * this.width + right) * 3; at += 3) {
      this.pixels[at] = (this.pixels[at] ?? 0) * rest + red * opacity;
      this.pixels[at + 1] = (this.pixels[at + 1] ?? 0) * rest + green * opacity;
      this.pixels[at + 2] = (this.pixels[at + 2] ?? 0) * rest + blue * opacity;
    }
  }
}

/** From one letter to the next, and from one line to the next. */
export function advance(unit: number): number {
  return (GLYPH_WIDTH + 1) * unit;
}

export function lineHeight(unit: number): number {
  return (GLYPH_HEIGHT + 3) * unit;
}

/** Breaks at spaces, and inside a word only when it is longer than a line. */
export function wrapped(text: string, columns: number): string[] {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(/\s+/).flatMap((one) => pieces(one, columns))) {
    if (line !== '' && [...line].length + 1 + [...word].length > columns) {
      lines.push(line);
      line = word;
    } else line = line === '' ? word : `${line} ${word}`;
  }
  return line === '' ? lines : [...lines, line];
}

function pieces(word: string, columns: number): string[] {
  const characters = [...word];
  const count = Math.ceil(characters.length / columns);
  return Array.from({ length: count }, (_, index) => characters.slice(index * columns, (index + 1) * columns).join(''));
}
