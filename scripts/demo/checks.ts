import { styleText } from 'node:util';
import type { Screen } from './screen.ts';

export type Check = { what: string; ok: boolean; found: string };

/** What the demo promises and what it found. It ends well only if every check did. */
export class Checks {
  readonly all: Check[] = [];
  readonly #screen: Screen;

  constructor(screen: Screen) {
    this.#screen = screen;
  }

  expect(what: string, ok: boolean, found: string): void {
    this.all.push({ what, ok, found });
    const mark = ok ? styleText('green', 'ok') : styleText('red', 'FAILED');
    this.#screen.line(`${mark}  ${what}: ${found}`);
  }

  get failed(): readonly Check[] {
    return this.all.filter((check) => !check.ok);
  }
}
