import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { stringify } from 'yaml';
import { Checks } from './demo/checks.ts';
import { writeContactSheet } from './demo/contact-sheet.ts';
import { ABSENT_MODEL, FAST_MODEL, HOSTS } from './demo/hosts.ts';
import { Screen, seconds } from './demo/screen.ts';
import type { Stage } from './demo/steps.ts';
import { cancelBatch, editOne, generateBatch, generateOne, giveBack, showHosts } from './demo/steps.ts';
import { BridgeClient } from './lib/bridge-client.ts';
import { SimulatedHost } from './lib/simulated-host.ts';

const { values: flags } = parseArgs({
  options: { keep: { type: 'boolean', default: false }, json: { type: 'boolean', default: false } },
});

if (process.platform === 'linux') process.exitCode = await demo();
else {
  process.stderr.write('The demo simulates GPU hosts with Linux processes. Run it on Linux, or on Windows in WSL2.\n');
  process.exitCode = 69;
}

/** Three simulated GPU hosts, the real agents, the real bridge and a real MCP client. 0 only if every check held. */
async function demo(): Promise<number> {
  const startedMs = performance.now();
  const screen = new Screen({ isSilent: flags.json });
  const checks = new Checks(screen);
  const output = resolve('generated_images', new Date().toISOString().slice(0, 19).replaceAll(':', '-'));
  const work = await mkdtemp(join(tmpdir(), 'gantry-demo-'));
  await mkdir(output, { recursive: true });
  const hosts: SimulatedHost[] = [];
  try {
    hosts.push(
      ...(await Promise.all(HOSTS.map((host) => SimulatedHost.start({ ...host, directory: join(work, host.name) })))),
    );
    const config = await writeBridgeConfig(work, { hosts, output });
    const figures = await runSteps({ hosts, screen, checks, output }, { config, home: work });
    const tookSeconds = (performance.now() - startedMs) / 1000;
    checks.expect('the demo takes under 60 s', tookSeconds < 60, seconds(tookSeconds));
    if (flags.json) {
      process.stdout.write(
        `${JSON.stringify({ ok: checks.failed.length === 0, tookSeconds, output, checks: checks.all, ...figures }, null, 2)}\n`,
      );
    }
    if (flags.keep) await keepUntilInterrupted(screen, config);
  } finally {
    await Promise.all(hosts.map((host) => host[Symbol.asyncDispose]()));
    await rm(work, { recursive: true, force: true });
  }
  screen.heading(checks.failed.length === 0 ? 'Everything held.' : `${checks.failed.length} check(s) failed.`);
  return checks.failed.length === 0 ? 0 : 1;
}

async function runSteps(base: Omit<Stage, 'bridge'>, o: { config: string; home: string }) {
  await using bridge = await BridgeClient.start(o);
  const stage: Stage = { ...base, bridge };
  const hosts = await showHosts(stage);
  const single = await generateOne(stage, { model: FAST_MODEL, prompt: 'a red fox asleep in the moss', seed: 42 });
  const batch = await generateBatch(stage);
  const absent = await generateOne(stage, { model: ABSENT_MODEL, prompt: 'a lighthouse on a cliff at dusk', seed: 43 });
  const edit = await editOne(stage, single.file_path);
  const cancelled = await cancelBatch(stage);
  const [first] = base.hosts;
  const vram = first && (await giveBack(stage, first));
  const files = [
    single.file_path,
    ...batch.results.map((result) => result.file_path),
    absent.file_path,
    edit.output_path,
    ...cancelled.files_saved,
  ];
  const contactSheet = join(base.output, 'contact-sheet.png');
  await writeContactSheet(files, contactSheet);
  base.screen.heading('Files');
  for (const file of files) base.screen.line(file);
  base.screen.line(`contact sheet: ${contactSheet}`);
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

/** Leaves the hosts up for an assistant to connect to, until Ctrl-C. */
async function keepUntilInterrupted(screen: Screen, config: string): Promise<void> {
  const command = { command: process.execPath, args: [resolve('dist/gantry.cjs'), 'bridge', '--config', config] };
  screen.heading('The hosts keep running. Connect an assistant with this, and end them with Ctrl-C:');
  screen.line(JSON.stringify({ mcpServers: { gantry: command } }, null, 2).replaceAll('\n', '\n  '));
  await once(process, 'SIGINT');
}
