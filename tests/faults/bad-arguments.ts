import fc from 'fast-check';

type Schema = { properties?: Record<string, { type?: string; enum?: unknown[] }>; required?: string[] };

/** Arguments that are wrong, and the one that has to be named. */
export type BadArguments = { tool: string; args: Record<string, unknown>; field: string };

/** Names that mean something to JavaScript, to a shell, or to a log. `__proto__` the SDK drops before anybody sees it. */
const NASTY_NAMES = ['constructor', 'toString', 'then', '../..', 'prompt\u0000', '\u001b[2J', 'ключ'];
const NASTY_TEXTS = ['\0', '\ud800', '../../etc/passwd', '$(touch x)', '%00', '\u202e', 'x'.repeat(100_000)];

/**
 * Arguments for a tool by its published schema, with one thing wrong that no schema of ours lets through: an unknown name, a
 * value of another type, or one that is missing.
 */
export function badArguments(tool: string, schema: Schema): fc.Arbitrary<BadArguments> {
  const properties = Object.entries(schema.properties ?? {});
  const names = properties.map(([name]) => name);
  const rest = fc.record(
    Object.fromEntries(names.map((name) => [name, fc.oneof(fc.jsonValue({ maxDepth: 3 }), nastyText())])),
    { requiredKeys: [] },
  );
  const unknown = fc
    .oneof(fc.constantFrom(...NASTY_NAMES), fc.string({ minLength: 1, maxLength: 40 }))
    .filter((name) => name !== '__proto__' && !names.includes(name))
    .chain((field) =>
      fc.tuple(rest, fc.jsonValue()).map(([args, value]) => ({ field, args: having(args, field, value ?? 1) })),
    );
  const kinds = [unknown];
  if (properties.length > 0) kinds.push(mistyped(properties, rest));
  if ((schema.required ?? []).length > 0) kinds.push(missing(schema.required ?? [], rest));
  return fc.oneof(...kinds).map(({ field, args }) => ({ tool, args, field }));
}

type Wrong = { field: string; args: Record<string, unknown> };

function mistyped(properties: [string, { type?: string }][], rest: fc.Arbitrary<object>): fc.Arbitrary<Wrong> {
  return fc
    .constantFrom(...properties)
    .chain(([field, { type }]) =>
      fc.tuple(rest, valueOfAnother(type)).map(([args, value]) => ({ field, args: having(args, field, value) })),
    );
}

function missing(required: readonly string[], rest: fc.Arbitrary<object>): fc.Arbitrary<Wrong> {
  return fc
    .constantFrom(...required)
    .chain((field) => rest.map((args) => ({ field, args: having(args, field, undefined) })));
}

/** An own property, whatever it is called. */
function having(args: object, field: string, value: unknown): Record<string, unknown> {
  const entries = Object.entries(args).filter(([name]) => name !== field);
  return Object.fromEntries(value === undefined ? entries : [...entries, [field, value]]);
}

/** Objects are taken by no argument of ours; `null` counts as left out, and JSON makes it of an infinite number. */
function valueOfAnother(type: string | undefined): fc.Arbitrary<unknown> {
  const odd = fc.dictionary(fc.string(), fc.jsonValue({ maxDepth: 2 }));
  if (type === 'string')
    return fc.oneof(odd, fc.double({ noNaN: true, noDefaultInfinity: true }), fc.boolean(), fc.array(fc.integer()));
  if (type === 'integer' || type === 'number') return fc.oneof(odd, nastyText(), fc.boolean(), fc.constant(1e308));
  return fc.oneof(odd, fc.constant({ length: 1e9 }));
}

function nastyText(): fc.Arbitrary<string> {
  return fc.oneof(fc.constantFrom(...NASTY_TEXTS), fc.string({ unit: 'binary', maxLength: 60 }));
}
