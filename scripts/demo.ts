import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { stringify } from 'yaml';
import { Checks } from './demo/checks.ts';
import { writeContactSheet } from './demo/contact-sheet.ts';
import { ABSENT_MODEL, FAST_MODEL, HOSTS } from './demo/hosts.ts';
import { Screen, seconds } from './demo/screen.ts';
import type { Stage } from './demo/steps.ts';
import { cancelBatch, editOne, generateBatch, generateOne, giveBack, showHosts } from './demo/steps.ts';
import { untilAborted } from '../shared/abort.ts';
import { BridgeClient } from './lib/bridge-client.ts';
import { SimulatedHost } from './lib/simulated-host.ts';

const USAGE = `Usage: npm run demo -- [--json] [--keep]
  --json  print one JSON document with every figure, and nothing else (use npm run -s)
  --keep  leave the hosts running and print how to connect an assistant; Ctrl-C ends them
`;

process.exitCode = await main();

async function main(): Promise<number> {
  if (process.platform !== 'linux') {
    process.stderr.write(
      'The demo simulates GPU hosts with Linux processes. Run it on Linux, or on Windows in WSL2.\n',
    );
    return 69;
  }
  try {
    const boolean = { type: 'boolean', default: false } as const;
    const { values } = parseArgs({ options: { keep: boolean, json: boolean, help: boolean } });
    if (!values.help) return await demo(values);
    process.stdout.write(USAGE);
    return 0;
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && String(error.code).startsWith('ERR_PARSE_ARGS'))) throw error;
    process.stderr.write(`${error.message}\n${USAGE}`);
    return 2;
  }
}

/** Three simulated GPU hosts, the real agents, the real bridge and a real MCP client. 0 only if every check held. */
async function demo(flags: { keep: boolean; json: boolean }): Promise<number> {
  const startedMs = performance.now();
  const screen = new Screen({ isSilent: flags.json });
  const checks = new Checks(screen);
  const output = resolve('generated_images', new Date().toISOString().slice(0, 19).replaceAll(':', '-'));
  const work = await mkdtemp(join(tmpdir(), 'gantry-demo-'));
  await mkdir(output, { recursive: true });
  const interrupted = interruption();
  const starting = HOSTS.map((host) => SimulatedHost.start({ ...host, directory: join(work, host.name) }));
  let bridge: BridgeClient | undefined;
  try {
    const hosts = await untilAborted(Promise.all(starting), interrupted);
    const config = await writeBridgeConfig(work, { hosts, output });
    bridge = await BridgeClient.start({ config, home: work });
    const figures = await untilAborted(runSteps({ hosts, bridge, screen, checks, output }), interrupted);
    const tookSeconds = (performance.now() - startedMs) / 1000;
    checks.expect('the demo takes under 60 s', tookSeconds < 60, seconds(tookSeconds));
    screen.heading(checks.failed.length === 0 ? 'Everything held.' : `${checks.failed.length} check(s) failed.`);
    if (flags.json) {
      const document = { ok: checks.failed.length === 0, tookSeconds, output, checks: checks.all, ...figures };
      process.stdout.write(`${JSON.stringify(document, null, 2)}\n`);
    }
    if (flags.keep) await keepUntilInterrupted(config, interrupted);
    return checks.failed.length === 0 ? 0 : 1;
  } catch (error) {
    if (!interrupted.aborted) throw error;
    return 130;
  } finally {
    await bridge?.[Symbol.asyncDispose]();
    for (const host of await Promise.allSettled(starting)) {
      if (host.status === 'fulfilled') await host.value[Symbol.asyncDispose]();
    }
    await rm(work, { recursive: true, force: true });
    if (interrupted.aborted) process.stderr.write('\nEnded. No host is left running.\n');
  }
}

/** Aborts at Ctrl-C, SIGTERM or a closed terminal. The listeners stay: npm and a terminal may send the signal twice. */
function interruption(): AbortSignal {
  const controller = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => controller.abort());
  return controller.signal;
}

async function runSteps(stage: Stage) {
  const { screen } = stage;
  const hosts = await showHosts(stage);
  const single = await generateOne(stage, { model: FAST_MODEL, prompt: 'a red fox asleep in the moss', seed: 42 });
  const batch = await generateBatch(stage);
  const absent = await generateOne(stage, { model: ABSENT_MODEL, prompt: 'a lighthouse on a cliff at dusk', seed: 43 });
  const edit = await editOne(stage, single.file_path);
  const cancelled = await cancelBatch(stage);
  const [first] = stage.hosts;
  const vram = first && (await giveBack(stage, first));
  const files = [
    single.file_path,
    ...batch.results.map((result) => result.file_path),
    absent.file_path,
    edit.output_path,
    ...cancelled.files_saved,
  ];
  const contactSheet = join(stage.output, 'contact-sheet.png');
  await writeContactSheet(files, contactSheet);
  screen.heading('Files');
  for (const file of files) screen.line(file);
  screen.line(`contact sheet: ${contactSheet}`);
  return { hosts, single, batch, absent, edit, cancelled, vram, files, contactSheet };
}

async function writeBridgeConfig(
  work: string,
  o: { hosts: readonly SimulatedHost[]; output: string },
): Promise<string> {
  const path = join(work, 'bridge.yaml');
  const hosts = o.hosts.map(({ name, url, token }) => ({ name, url, token }));
  await writeFile(path, stringify({ hosts, output_dir: o.output, roots: [resolve('.')], log_level: 'warn' }), {
    mode: 0o600,
  });
  return path;
}

/** Leaves the hosts up for an assistant to connect to, until the demo is interrupted. On stderr: stdout may be JSON. */
async function keepUntilInterrupted(config: string, interrupted: AbortSignal): Promise<void> {
  const command = { command: process.execPath, args: [resolve('dist/gantry.cjs'), 'bridge', '--config', config] };
  const snippet = JSON.stringify({ mcpServers: { gantry: command } }, null, 2);
  process.stderr.write(
    `\nThe hosts keep running until Ctrl-C. See them as their owner, or connect an assistant:\n\n` +
      `node dist/gantry.cjs status --config ${config}\n` +
      `node dist/gantry-agent.mjs status --config ${join(dirname(config), 'rack', 'agent.yaml')}\n\n${snippet}\n`,
  );
  // An abort listener alone does not keep a process alive; the hosts' output does.
  if (!interrupted.aborted) await once(interrupted, 'abort');
}
