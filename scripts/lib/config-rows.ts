import { z } from 'zod';

type Shape = {
  type?: string;
  description?: string;
  default?: unknown;
  const?: unknown;
  enum?: unknown[];
  pattern?: string;
  anyOf?: Shape[];
  items?: Shape;
  properties?: Record<string, Shape>;
  additionalProperties?: Shape | boolean;
};

/** One row for each key of a configuration file: path, what it may be, default, meaning. */
export function configRows(schema: z.ZodType): string[][] {
  return rowsOf(z.toJSONSchema(schema, { io: 'input' }) as Shape, ''); // the part of a JSON Schema that is read here
}

function rowsOf({ properties = {} }: Shape, prefix: string): string[][] {
  return Object.entries(properties).flatMap(([key, shape]) => {
    const path = `${prefix}${key}`;
    const below = rowsBelow(shape, path);
    if (below.length > 0 && shape.description === undefined) return below;
    return [[`\`${path}\``, valueText(shape), defaultText(shape.default), shape.description ?? ''], ...below];
  });
}

function rowsBelow({ items, additionalProperties, ...shape }: Shape, path: string): string[][] {
  if (shape.properties !== undefined) return rowsOf(shape, `${path}.`);
  if (items?.properties !== undefined) return rowsOf(items, `${path}[].`);
  return typeof additionalProperties === 'object' ? rowsOf(additionalProperties, `${path}.NAME.`) : [];
}

function valueText(shape: Shape): string {
  if (shape.anyOf !== undefined) return [...new Set(shape.anyOf.map(valueText))].join(' or ');
  if (shape.const !== undefined) return `\`${JSON.stringify(shape.const)}\``;
  if (shape.enum !== undefined) return shape.enum.map((value) => `\`${String(value)}\``).join(', ');
  if (shape.pattern?.includes('ms|s|m')) return 'duration';
  if (shape.pattern?.includes('MiB|GiB')) return 'size';
  if (shape.items !== undefined) return `list of ${valueText(shape.items)}`;
  return (
    { string: 'text', object: 'mapping', boolean: '`true`, `false`', integer: 'whole number' }[shape.type ?? ''] ??
    shape.type ??
    ''
  );
}

function defaultText(value: unknown): string {
  if (value === undefined || (typeof value === 'object' && JSON.stringify(value).length <= 2)) return '';
  return `\`${typeof value === 'string' ? value : JSON.stringify(value)}\``;
}
