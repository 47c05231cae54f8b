import { readdir, readFile } from 'node:fs/promises';
import { join, posix, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { describe, expect, test } from 'vitest';
import { TRANSITIONS as MODEL_TRANSITIONS } from '../agent/model/model-state.ts';
import { JOB_TRANSITIONS } from '../bridge/fleet/job-state.ts';
import { ERROR_CODES } from '../shared/errors.ts';

const ROOT = fileURLToPath(new URL('..', import.meta.url));

/** Which layers a file may take values from. Files directly in agent/ and bridge/ put everything of their side together. */
const MAY_IMPORT: Record<string, readonly string[]> = {
  shared: [],
  'agent/gpu': ['shared'],
  'agent/engine': ['shared'],
  'agent/server': ['shared', 'agent/gpu', 'agent/engine'],
  'agent/weights': ['shared', 'agent/engine', 'agent/server'],
  'agent/model': ['shared', 'agent/gpu', 'agent/engine', 'agent/server', 'agent/weights'],
  'agent/job': ['shared', 'agent/gpu', 'agent/model', 'agent/weights'],
  'agent/http': ['shared', 'agent/job'],
  'agent/rpc': ['shared', 'agent/job'],
  'agent/doctor': ['shared', 'agent/gpu', 'agent/server'],
  'agent/cli': ['shared', 'agent/doctor', 'agent/server', 'agent/weights'],
  agent: [
    'package.json',
    'shared',
    'agent/gpu',
    'agent/server',
    'agent/weights',
    'agent/model',
    'agent/job',
    'agent/http',
    'agent/rpc',
    'agent/doctor',
    'agent/cli',
  ],
  'bridge/output': ['shared'],
  'bridge/fleet': ['shared', 'bridge/output'],
  'bridge/pairing': ['shared', 'bridge/fleet'],
  'bridge/private-agent': ['shared', 'bridge/fleet'],
  'bridge/images': ['shared', 'bridge/fleet', 'bridge/output'],
  'bridge/styles': ['shared', 'bridge/output'],
  'bridge/cli': ['shared', 'bridge/fleet', 'bridge/images', 'bridge/output', 'bridge/pairing'],
  'bridge/mcp': ['shared', 'bridge/fleet', 'bridge/images', 'bridge/output', 'bridge/styles'],
  bridge: [
    'package.json',
    'shared',
    'bridge/cli',
    'bridge/fleet',
    'bridge/images',
    'bridge/mcp',
    'bridge/output',
    'bridge/pairing',
    'bridge/private-agent',
    'bridge/styles',
  ],
};

/**
 * Functions from values to values: no I/O, clock, randomness, log or promise. These decide what gantry does; any other
 * file joins them by saying PURE in a comment.
 */
const DECIDING = [
  'agent/gpu/vram-planner.ts',
  'agent/job/slot-scheduler.ts',
  'agent/job/turn-memory.ts',
  'agent/model/footprint.ts',
  'agent/model/idle-policy.ts',
  'agent/model/model-state.ts',
  'agent/server/restart-policy.ts',
  'bridge/fleet/batch-plan.ts',
  'bridge/fleet/batch-quality.ts',
  'bridge/fleet/host-forecast.ts',
  'bridge/fleet/job-state.ts',
  'bridge/fleet/offers.ts',
  'bridge/fleet/placement.ts',
  'bridge/fleet/retry-policy.ts',
  'bridge/output/file-names.ts',
  'shared/backoff.ts',
  'shared/nearest.ts',
  'shared/parameters.ts',
  'shared/profiles.ts',
  'shared/service-time.ts',
];

/** Schemas and constants, which pure files may use besides each other. */
const DECLARATIONS = [
  'shared/errors.ts',
  'shared/host-snapshot.ts',
  'shared/job.ts',
  'shared/model-profile.ts',
  'shared/protocol.ts',
];

const IMPURE =
  /node:|\bprocess\b|\bDate\.now\b|\bnew Date\(\)|\bperformance\b|\bMath\.random\b|\bcrypto\b|\basync\b|\bawait\b/;

const EQUALITY = new Set<ts.SyntaxKind>([
  ts.SyntaxKind.EqualsEqualsToken,
  ts.SyntaxKind.EqualsEqualsEqualsToken,
  ts.SyntaxKind.ExclamationEqualsToken,
  ts.SyntaxKind.ExclamationEqualsEqualsToken,
]);

const sources = (await Promise.all(['shared', 'agent', 'bridge'].map(sourcesUnder))).flat().sort();
const marked = await Promise.all(sources.map(async (file) => /\bPURE\b/.test(await textOf(file))));
const pure = [...new Set([...DECIDING, ...sources.filter((_, index) => marked[index])])].sort();

type Import = { from: string; isType: boolean };

describe('layers', () => {
  test.each(sources)('%s imports only what its layer may', async (file) => {
    const own = layerOf(file);
    for (const { from, isType } of await importsOf(file)) {
      if (!from.startsWith('.')) continue;
      const target = targetOf(file, from);
      const layer = layerOf(target);
      // A type of the composition root carries no behaviour upward.
      const isRootType = isType && layer === own.split('/')[0];
      if (layer !== own && !isRootType) expect(MAY_IMPORT[own], `${file} → ${target}`).toContain(layer);
    }
  });

  test('only one file knows the MCP SDK', async () => {
    const imports = await Promise.all(sources.map(async (file) => ({ file, imports: await importsOf(file) })));
    const users = imports.filter((each) => each.imports.some(({ from }) => from.startsWith('@modelcontextprotocol/')));
    expect(users.map(({ file }) => file)).toEqual(['bridge/mcp/sdk.ts']);
  });

  test('there are no barrels', () => {
    expect(sources.filter((file) => /(^|\/)(index|utils?|helpers?)\.ts$/.test(file))).toEqual([]);
  });
});

describe('pure files', () => {
  test.each(pure)('%s touches nothing outside', async (file) => {
    const text = withoutComments(await textOf(file));
    expect(IMPURE.exec(text)?.[0]).toBeUndefined();
    for (const { from, isType } of await importsOf(file)) {
      if (isType || from === 'zod') continue;
      const target = targetOf(file, from);
      expect([...pure, ...DECLARATIONS], `${file} → ${from}`).toContain(target);
    }
  });
});

describe('S3: where a secret is judged', () => {
  // `===` and `equals` stop at the first byte that differs, and how long that takes can be measured from outside.
  test.each(['agent/tokens.ts', 'agent/pairing.ts', 'bridge/pairing/pinned-certificate.ts'])(
    '%s compares in constant time only',
    async (file) => {
      const text = await textOf(file);
      const source = ts.createSourceFile(file, text, ts.ScriptTarget.Latest, true);
      const compared: string[] = [];
      const visit = (node: ts.Node): void => {
        if (ts.isBinaryExpression(node) && EQUALITY.has(node.operatorToken.kind)) {
          const sides = [node.left, node.right].map((side) => side.getText());
          if (sides.some((side) => /digest|sha256|fingerprint/i.test(side))) compared.push(node.getText());
        }
        ts.forEachChild(node, visit);
      };
      visit(source);
      expect(compared).toEqual([]);
      expect(text).toContain('timingSafeEqual(');
      expect(withoutComments(text)).not.toMatch(/\.(equals|compare|localeCompare)\(/);
    },
  );
});

describe('documents name', () => {
  test.each(Object.keys(ERROR_CODES))('the error code %s', async (code) => {
    expect(await textOf('docs/PROTOCOL.md')).toContain(`\`${code}\``);
  });

  test.each([...transitionsOf('model', MODEL_TRANSITIONS), ...transitionsOf('job', JOB_TRANSITIONS)])(
    'every transition of a %s from %s',
    async (_, from, targets) => {
      const text = await textOf('ARCHITECTURE.md');
      const rows = text.split('\n').filter((line) => line.startsWith(`| ${from} `));
      const named = rows.map((row) => row.match(/[a-z]+/g)?.slice(1) ?? []);
      expect(named).toContainEqual([...targets]);
    },
  );
});

function transitionsOf(what: string, table: Record<string, readonly string[]>): [string, string, readonly string[]][] {
  return Object.entries(table).map(([from, targets]) => [what, from, targets]);
}

function textOf(file: string): Promise<string> {
  return readFile(join(ROOT, file), 'utf8');
}

async function sourcesUnder(folder: string): Promise<string[]> {
  const entries = await readdir(join(ROOT, folder), { recursive: true });
  return entries.filter((name) => name.endsWith('.ts')).map((name) => `${folder}/${name.split(sep).join('/')}`);
}

function targetOf(file: string, from: string): string {
  return posix.join(posix.dirname(file), from);
}

/** `agent/engine/engine.ts` is in `agent/model`, `agent/main.ts` in `agent`. */
function layerOf(file: string): string {
  const [side = '', folder = '', ...rest] = file.split('/');
  return side === 'shared' || rest.length === 0 ? side : `${side}/${folder}`;
}

async function importsOf(file: string): Promise<Import[]> {
  const source = ts.createSourceFile(file, await textOf(file), ts.ScriptTarget.Latest, true);
  const found: Import[] = [];
  visit(source);
  return found;

  function visit(node: ts.Node): void {
    if (ts.isImportDeclaration(node)) add(node.moduleSpecifier, isTypeImport(node));
    else if (ts.isExportDeclaration(node) && node.moduleSpecifier) add(node.moduleSpecifier, node.isTypeOnly);
    else if (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword)
      add(node.arguments[0], false);
    else if (ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument)) add(node.argument.literal, true);
    ts.forEachChild(node, visit);
  }

  function add(specifier: ts.Node | undefined, isType: boolean): void {
    if (specifier && ts.isStringLiteral(specifier)) found.push({ from: specifier.text, isType });
  }
}

function isTypeImport({ importClause }: ts.ImportDeclaration): boolean {
  if (importClause === undefined) return false;
  if (importClause.phaseModifier === ts.SyntaxKind.TypeKeyword) return true;
  const named = importClause.namedBindings;
  return (
    importClause.name === undefined &&
    named !== undefined &&
    ts.isNamedImports(named) &&
    named.elements.every((element) => element.isTypeOnly)
  );
}

function withoutComments(text: string): string {
  return text.replace(/\/\*[\s\S]*?\*\//g, '').replace(/(^|\s)\/\/.*$/gm, '$1');
}
