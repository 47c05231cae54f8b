import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { PARTS } from './bench/parts.ts';
import type { BenchRow } from './bench/row.ts';
import { tableOf } from './bench/table.ts';

const USAGE = `Usage: npm run bench -- [--json] [--only ID,ID] [--list]
  --json  print one JSON document with every row, and nothing else (use npm run -s)
  --only  run only the parts that measure these targets, as in --only B1,B2
  --list  print what can be measured
Measures the real programs with simulated engines. The exit code is 0 only if no gate failed.
`;

process.exitCode = await main();

async function main(): Promise<number> {
  if (process.platform !== 'linux') {
    process.stderr.write(
      'The benchmark simulates GPU hosts with Linux processes. Run it on Linux, or on Windows in WSL2.\n',
    );
    return 69;
  }
  const boolean = { type: 'boolean', default: false } as const;
  const options = { json: boolean, list: boolean, help: boolean, only: { type: 'string' } } as const;
  try {
    const { values } = parseArgs({ options });
    if (values.help) process.stdout.write(USAGE);
    else if (values.list) for (const { ids, title } of PARTS) process.stdout.write(`${ids.join(', ')}: ${title}\n`);
    else return await bench(values);
    return 0;
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && String(error.code).startsWith('ERR_PARSE_ARGS'))) throw error;
    process.stderr.write(`${error.message}\n${USAGE}`);
    return 2;
  }
}

/** Runs part after part. 130 when it was interrupted, 1 when a gate failed. */
async function bench(flags: { json: boolean; only?: string | undefined }): Promise<number> {
  const wanted = flags.only?.split(',').map((id) => id.trim().toUpperCase());
  const unknown = wanted?.filter((id) => !PARTS.some(({ ids }) => ids.includes(id))) ?? [];
  if (unknown.length > 0) {
    process.stderr.write(`Nothing measures ${unknown.join(', ')}: npm run bench -- --list names what there is.\n`);
    return 2;
  }
  const controller = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => controller.abort());
  const directory = await mkdtemp(join(tmpdir(), 'gantry-bench-'));
  const rows: BenchRow[] = [];
  try {
    for (const [index, part] of PARTS.entries()) {
      if (controller.signal.aborted) break;
      if (wanted !== undefined && !part.ids.some((id) => wanted.includes(id))) continue;
      const say = (text: string): void => void process.stderr.write(`${part.ids.join(', ')}  ${text}\n`);
      say(part.title);
      const own = join(directory, String(index));
      await mkdir(own);
      rows.push(...(await part.run({ directory: own, say, signal: controller.signal })));
    }
  } catch (error) {
    if (!controller.signal.aborted) throw error;
  } finally {
    await rm(directory, { recursive: true, force: true, maxRetries: 3 });
  }
  const failed = rows.filter(({ pass }) => pass === false);
  const machine = { node: process.version, cores: cpus().length, cpu: cpus()[0]?.model ?? 'unknown' };
  if (flags.json) process.stdout.write(`${JSON.stringify({ ok: failed.length === 0, machine, rows }, null, 2)}\n`);
  else process.stdout.write(`\n${tableOf(rows)}\n\n${verdict(rows)}\n`);
  if (controller.signal.aborted) return 130;
  return failed.length === 0 ? 0 : 1;
}

function verdict(rows: readonly BenchRow[]): string {
  const count = (pass: boolean): number => rows.filter((row) => row.pass === pass).length;
  const missing = rows.filter(({ value }) => value === null).length;
  const left = missing === 0 ? '' : `, ${missing} not run`;
  return `${count(true)} gates passed, ${count(false)} failed${left}.`;
}
