import { z } from 'zod';
import type { Tool } from '../../bridge/mcp/tool.ts';
import { IMAGE_ANSWERS } from './image-answers.ts';

/** A tool as a chapter of docs/tools.md: what it does, each argument with its bounds, each field of its answer. */
export function toolChapter({ name, title, description, annotations, input, output }: Tool): string {
  const answer = output ?? IMAGE_ANSWERS[name];
  return [
    `## ${name}`,
    `**${title}** (${hintsText(annotations)}). ${description}`,
    argumentTable(input),
    ...(answer === undefined ? [] : answerText(answer)),
  ].join('\n\n');
}

function hintsText({ readOnlyHint, destructiveHint, idempotentHint }: Tool['annotations']): string {
  if (readOnlyHint) return 'changes nothing';
  const repeat = idempotentHint ? 'asking twice is asking once' : 'asking twice makes two';
  return `${destructiveHint ? 'ends work or gives up memory' : 'only adds'}; ${repeat}`;
}

function argumentTable(input: z.ZodObject): string {
  const rows = Object.entries<z.core.$ZodType>(input.shape).map(([name, schema]) => {
    const { isOptional, inner } = unwrapped(schema);
    const meta = z.globalRegistry.get(schema) ?? {};
    const note = typeof meta['note'] === 'string' ? meta['note'] : '';
    const words = meta.description ?? note;
    return [`\`${name}\`${isOptional ? '' : ' (required)'}`, boundsText(inner), words];
  });
  if (rows.length === 0) return 'It takes no arguments.';
  return table(['argument', 'value', 'meaning'], rows);
}

/** The forms of an answer differ by `status`; each field is told once, with those forms in which it may be missing. */
function answerText(answer: z.core.$ZodType): string[] {
  const forms = answer instanceof z.ZodUnion ? answer.options : [answer];
  const fields = new Map<string, { texts: Set<string>; count: number }>();
  for (const form of forms) {
    if (!(form instanceof z.ZodObject)) throw new Error('an answer is an object');
    for (const [name, schema] of Object.entries<z.core.$ZodType>(form.shape)) {
      const { isOptional, inner } = unwrapped(schema);
      const { texts, count } = fields.get(name) ?? { texts: new Set<string>(), count: 0 };
      const isKnownObject = inner instanceof z.ZodObject && texts.size > 0;
      if (!isKnownObject) for (const text of typeText(inner).split(' | ')) texts.add(text);
      fields.set(name, { texts, count: count + (isOptional ? 0 : 1) });
    }
  }
  const rows = [...fields].map(([name, { texts, count }]) => [
    `\`${name}\``,
    `\`${[...texts].join(' | ')}\``,
    count === forms.length ? '' : 'not always',
  ]);
  return ['Answer:', table(['field', 'value', ''], rows)];
}

function unwrapped(schema: z.core.$ZodType): { isOptional: boolean; inner: z.core.$ZodType } {
  if (!(schema instanceof z.ZodOptional)) return { isOptional: false, inner: schema };
  return { isOptional: true, inner: unwrapped(schema.unwrap()).inner };
}

/** An argument's type with its bounds. */
function boundsText(schema: z.core.$ZodType): string {
  if (schema instanceof z.ZodEnum) return schema.options.map((value) => `\`${value}\``).join(' or ');
  if (schema instanceof z.ZodArray) {
    const { minLength, maxLength } = limitsOf(schema);
    const times = maxLength === undefined ? 'any number' : `${minLength ?? 0} to ${maxLength}`;
    return `a list of ${times} of: ${boundsText(schema.element)}`;
  }
  if (schema instanceof z.ZodString) {
    return schema.maxLength === null ? 'text' : `text, at most ${schema.maxLength} characters`;
  }
  if (schema instanceof z.ZodBoolean) return '`true` or `false`';
  if (schema instanceof z.ZodNumber) {
    const kind = schema instanceof z.ZodNumberFormat ? 'whole number' : 'number';
    const { minValue, maxValue } = schema;
    return Number.isFinite(minValue) && Number.isFinite(maxValue) ? `${kind}, ${minValue} to ${maxValue}` : kind;
  }
  throw new Error(`scripts/lib/tool-docs.ts cannot show an argument of kind ${schema._zod.def.type}`);
}

function limitsOf(schema: z.ZodArray): { minLength: number | undefined; maxLength: number | undefined } {
  const json = z.toJSONSchema(schema);
  return { minLength: json.minItems, maxLength: json.maxItems };
}

/** A field's type, as short as it can be read. */
function typeText(schema: z.core.$ZodType): string {
  const { isOptional, inner } = unwrapped(schema);
  if (isOptional) return typeText(inner);
  if (schema instanceof z.ZodNonOptional) return typeText(unwrapped(schema.unwrap()).inner);
  if (schema instanceof z.ZodNullable) return `${typeText(schema.unwrap())} | null`;
  if (schema instanceof z.ZodArray) return `${bracketed(typeText(schema.element))}[]`;
  if (schema instanceof z.ZodUnion) return [...new Set(schema.options.map(typeText))].join(' | ');
  if (schema instanceof z.ZodEnum) return schema.options.map(String).join(' | ');
  if (schema instanceof z.ZodLiteral) return [...schema.values].map(String).join(' | ');
  if (schema instanceof z.ZodRecord) return `{ [name]: ${typeText(schema.valueType)} }`;
  if (schema instanceof z.ZodObject) {
    const fields = Object.entries<z.core.$ZodType>(schema.shape).map(
      ([name, field]) => `${name}${field instanceof z.ZodOptional ? '?' : ''}: ${typeText(field)}`,
    );
    return `{ ${fields.join(', ')} }`;
  }
  if (schema instanceof z.ZodStringFormat) return 'string';
  if (schema instanceof z.ZodNumberFormat) return 'integer';
  return schema._zod.def.type;
}

function bracketed(text: string): string {
  return text.includes('|') && !text.startsWith('{') ? `(${text})` : text;
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]): string =>
    `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
  return [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n');
}
