import { parseArgs } from 'node:util';

/** Real options without and with a value, and the simulator's own; the text options of both are read by the program. */
export type OptionNames = { flags: readonly string[]; values: readonly string[] };

/** The command line of a simulated server, read as argparse reads it: what is unknown or no number ends the program with 2. */
export class Options {
  readonly #program: string;
  readonly #values: Record<string, string | boolean | (string | boolean)[] | undefined>;
  readonly positionals: string[];

  constructor(program: string, argv: string[], { flags, values }: OptionNames) {
    this.#program = program;
    try {
      const parsed = parseArgs({
        args: argv.map(withDashes),
        allowPositionals: true,
        options: {
          ...Object.fromEntries(flags.map((name) => [name, { type: 'boolean' as const }])),
          ...Object.fromEntries(values.map((name) => [name, { type: 'string' as const }])),
        },
      });
      this.#values = parsed.values;
      this.positionals = parsed.positionals;
    } catch {
      this.usage(`unrecognized arguments: ${argv.filter((word) => !isKnown(word, [...flags, ...values])).join(' ')}`);
    }
  }

  has(name: string): boolean {
    return this.#values[name] === true;
  }

  /** With or without a value. */
  isGiven(name: string): boolean {
    return this.#values[name] !== undefined;
  }

  text(name: string): string | undefined {
    const value = this.#values[name];
    return typeof value === 'string' ? value : undefined;
  }

  integer(name: string): number | undefined {
    const text = this.text(name);
    if (text === undefined || /^-?\d+$/.test(text)) return text === undefined ? undefined : Number(text);
    return this.usage(`argument --${name}: invalid int value: '${text}'`);
  }

  choice<const T extends string>(name: string, choices: readonly T[]): T | undefined {
    const text = this.text(name);
    const list = choices.map((choice) => `'${choice}'`).join(', ');
    if (text === undefined) return undefined;
    return (
      choices.find((choice) => choice === text) ??
      this.usage(`argument --${name}: invalid choice: '${text}' (choose from ${list})`)
    );
  }

  /** argparse's way out. */
  usage(problem: string): never {
    process.stderr.write(`usage: ${this.#program} [-h] [options]\n${this.#program}: error: ${problem}\n`);
    process.exit(2);
  }
}

/** vLLM's parser takes --load_ms for --load-ms too. */
function withDashes(word: string): string {
  const [, name, rest] = /^--([^=]*)(.*)$/s.exec(word) ?? [];
  return name === undefined ? word : `--${name.replaceAll('_', '-')}${rest}`;
}

function isKnown(word: string, names: readonly string[]): boolean {
  const name = /^--([^=]*)/.exec(withDashes(word))?.[1];
  return name === undefined || names.includes(name);
}
