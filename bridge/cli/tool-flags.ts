import type { Command } from 'commander';
import { Option } from 'commander';

/** A tool as clients see it: its name and the JSON Schema of its arguments. */
export type ToolShape = { name: string; inputSchema: { properties?: Record<string, object> | undefined } };

type Parameter = {
  type?: string;
  enum?: unknown[];
  items?: Parameter;
  description?: string;
  minimum?: number;
  maximum?: number;
};

/** What has no sense in a terminal: a command waits, and a terminal shows no pictures. */
const LEFT_OUT = ['preview', 'wait_seconds'];
/** The values of these flags are kept apart from those of the command itself. */
const PREFIX = 'tool:';

/** Adds a flag for each argument of a tool, in the tool's own words; `but` is what the command takes as its operands. */
export function addToolFlags(command: Command, tool: ToolShape, { but }: { but: readonly string[] }): void {
  for (const [name, shape] of Object.entries(tool.inputSchema.properties ?? {})) {
    if (LEFT_OUT.includes(name) || but.includes(name)) continue;
    command.addOption(new ToolOption(name, shape));
  }
}

/** The arguments that were given by flags. The tool checks them, so that a mistake has one sentence wherever it is made. */
export function optionValues(options: object): Record<string, unknown> {
  const given = Object.entries(options).filter(([key, value]) => key.startsWith(PREFIX) && value !== undefined);
  return Object.fromEntries(given.map(([key, value]): [string, unknown] => [key.slice(PREFIX.length), value]));
}

class ToolOption extends Option {
  readonly #name: string;

  constructor(name: string, parameter: Parameter) {
    super(`--${name.replaceAll('_', '-')} <${valueName(parameter)}>`, meaning(parameter));
    this.#name = name;
    this.argParser((text: string) => valueOf(text, parameter));
  }

  override attributeName(): string {
    return `${PREFIX}${this.#name}`;
  }
}

function valueName({ type, enum: values, items }: Parameter): string {
  if (values !== undefined) return values.map(String).join('|');
  if (type === 'array') return `${items === undefined ? 'text' : valueName(items)},...`;
  return type === 'integer' || type === 'number' ? 'number' : 'text';
}

/** Where the tool's words leave it out, the range says what is meant. */
function meaning({ description, minimum, maximum }: Parameter): string {
  if (description !== undefined) return description;
  return minimum === undefined || maximum === undefined ? '' : `${minimum} to ${maximum}`;
}

/** Text that is no number stays text: the tool says what is wrong with it. */
function valueOf(text: string, { type, items }: Parameter): unknown {
  if (type === 'array') return text.split(',').map((one) => valueOf(one.trim(), items ?? {}));
  if (type !== 'integer' && type !== 'number') return text;
  const number = Number(text);
  return text.trim() === '' || Number.isNaN(number) ? text : number;
}
