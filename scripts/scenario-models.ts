// Five models on two GPUs that hold two of them: 60 jobs in a fixed random order, checked from outside the agent.
import { setMaxListeners } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { MODELS } from './scenario/models.ts';
import { FULL, makePlan } from './scenario/plan.ts';
import type { ScenarioReport } from './scenario/run.ts';
import { runScenario } from './scenario/run.ts';
import { tablesOf, waitMs } from './scenario/tables.ts';

const USAGE = `Usage: npm run scenario:models -- [--seed N] [--json] [--keep]
  --seed N  another order of the same kinds of calls (default 1)
  --json    print one JSON document, and nothing else (use npm run -s)
  --keep    leave the files of the host and the laptop, and say where they are
`;

process.exitCode = await main();

async function main(): Promise<number> {
  const flags = readFlags();
  if (typeof flags === 'number') return flags;
  const directory = await mkdtemp(join(tmpdir(), 'gantry-scenario-'));
  const signal = interruption();
  const plan = makePlan(flags.seed, MODELS, FULL);
  const total = plan.reduce((sum, { prompts }) => sum + prompts.length, 0);
  let done = 0;
  const onTold = (): void => {
    done += 1;
    if (process.stderr.isTTY) process.stderr.write(`\r${done} of ${total} jobs`);
  };
  try {
    const report = await runScenario({ plan, directory, signal, onTold });
    if (process.stderr.isTTY) process.stderr.write('\r\x1b[2K');
    process.stdout.write(
      flags.json ? `${JSON.stringify(jsonOf(report, flags.seed), null, 2)}\n` : textOf(report, flags.seed),
    );
    return report.problems.length === 0 ? 0 : 1;
  } catch (error) {
    if (!signal.aborted) throw error;
    return 130;
  } finally {
    if (flags.keep) process.stderr.write(`The files are in ${directory}\n`);
    else await rm(directory, { recursive: true, force: true, maxRetries: 3 });
  }
}

function readFlags(): { seed: number; json: boolean; keep: boolean } | number {
  try {
    const boolean = { type: 'boolean', default: false } as const;
    const { values } = parseArgs({
      options: { seed: { type: 'string', default: '1' }, json: boolean, keep: boolean, help: boolean },
    });
    const seed = Number(values.seed);
    if (!values.help && Number.isInteger(seed)) return { ...values, seed };
    process.stdout.write(USAGE);
    return values.help ? 0 : 2;
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n${USAGE}`);
    return 2;
  }
}

function interruption(): AbortSignal {
  const controller = new AbortController();
  setMaxListeners(0, controller.signal); // every call that waits has one
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(name, () => controller.abort());
  return controller.signal;
}

function textOf(report: ScenarioReport, seed: number): string {
  const verdict =
    report.problems.length === 0
      ? 'Everything held: every job ended well, no card was over-committed, nothing is left.'
      : `${report.problems.length} problem(s):\n${report.problems.map((problem) => `  ${problem}`).join('\n')}`;
  return `Scenario with seed ${seed}\n\n${tablesOf(report)}\n\n${verdict}\n`;
}

function jsonOf({ jobs, ...report }: ScenarioReport, seed: number): object {
  const rows = jobs.map((job) => ({
    ...{
      call: job.ask.kind,
      model: job.ask.model.alias,
      prompt: job.prompt,
      file: job.filePath,
      gpu: job.picture?.gpu,
    },
    ...{ waitMs: Math.round(waitMs(job)), runMs: Math.round(job.picture?.runMs ?? 0), problem: job.problem },
  }));
  return { ok: report.problems.length === 0, seed, ...report, jobs: rows };
}
