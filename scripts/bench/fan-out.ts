import { execa } from 'execa';
import { mkdir, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { stringify } from 'yaml';
import { pause } from '../../shared/abort.ts';
import { BridgeClient } from '../lib/bridge-client.ts';
import { SimulatedHost } from '../lib/simulated-host.ts';
import { BusyGpu } from './busy-gpu.ts';
import { PeerProcess } from './peer-process.ts';
import type { Usage } from './process-usage.ts';
import { usageOf } from './process-usage.ts';
import type { BenchPart, BenchRow, BenchStage } from './row.ts';
import { absoluteRow, figure } from './row.ts';

const LINKS = 1_000;
const IDLE_MS = 15_000;
const WINDOW_MS = 30_000;
const SETTLE_MS = 4_000;

type Measured = { idle: Usage; busy: Usage; framesPerSecond: number };
type Gates = { cpuPercent: number; rssMb: number };

/** One agent with many bridges, and one bridge with many agents: idle, and with a status from each every second. */
export const FAN_OUT: BenchPart = {
  ids: ['M3', 'M4'],
  title: `${LINKS} links of one agent, then of one bridge`,
  run: async (stage) => {
    const { signal } = stage;
    await using host = await SimulatedHost.start({
      name: 'host',
      directory: join(stage.directory, 'host'),
      gpus: [{ name: 'Simulated GPU', totalMiB: 81_559 }],
      models: { klein: { engine: 'vllm-omni', model: 'black-forest-labs/FLUX.2-klein-4B', vram: '8GiB' } },
    });
    const snapshot = await snapshotOf(host, stage.directory);
    const agent = await measureAgent(host, stage);
    await host.stopAgent();
    signal.throwIfAborted();
    const bridge = await measureBridge(snapshot, stage);
    return [
      ...rows('M3', `agent, ${LINKS} subscribers`, agent, { cpuPercent: 2, rssMb: 80 }),
      ...rows('M4', `bridge, ${LINKS} agents`, bridge, { cpuPercent: 1.5, rssMb: 100 }),
    ];
  },
};

/** Subscribers are in a process of their own; each says hello with the token of the host and reads all. */
async function measureAgent(host: SimulatedHost, { say, signal }: BenchStage): Promise<Measured> {
  const args = [host.url, host.token, String(LINKS)];
  const { peers } = await PeerProcess.start('subscribers.ts', args, { signal });
  await using _peers = peers;
  const idle = await usage(host.pid, { windowMs: IDLE_MS, signal });
  say(`agent, idle: ${figure(idle.cpuPercent)} %, ${figure(idle.rssMb)} MB`);
  await using _busy = new BusyGpu([host]);
  return { idle, ...(await busy(host.pid, peers, signal)) };
}

/** Agents are in a process of their own, and speak the protocol with the snapshot of a real one. */
async function measureBridge(snapshot: string, { directory, say, signal }: BenchStage): Promise<Measured> {
  const { peers, ready } = await PeerProcess.start('mock-agents.ts', [String(LINKS), snapshot], { signal });
  await using _peers = peers;
  const ports = ready as number[]; // mock-agents.ts sends them first
  const hosts = ports.map((port, index) => ({ name: `h${index}`, url: `ws://127.0.0.1:${port}`, token: 'gantry_x' }));
  const home = join(directory, 'laptop');
  await mkdir(home);
  const config = await writeConfig(home, hosts);
  await using bridge = await BridgeClient.start({ config, home, stderr: 'ignore' });
  const linked = peers.next();
  await bridge.ask('gpu_status', { host: 'h0' });
  await linked;
  const pid = bridge.transport.pid;
  if (pid === null) throw new Error('the bridge has ended');
  const idle = await usage(pid, { windowMs: IDLE_MS, signal });
  say(`bridge, idle: ${figure(idle.cpuPercent)} %, ${figure(idle.rssMb)} MB`);
  peers.tell('on');
  return { idle, ...(await busy(pid, peers, signal)) };
}

async function busy(pid: number, peers: PeerProcess, signal: AbortSignal): Promise<Omit<Measured, 'idle'>> {
  await pause(SETTLE_MS, signal);
  peers.tell('count');
  await peers.next();
  const used = await usage(pid, { windowMs: WINDOW_MS, signal });
  peers.tell('count');
  const framesPerSecond = Number(await peers.next()) / LINKS / (WINDOW_MS / 1_000);
  if (framesPerSecond < 0.9) throw new Error(`only ${figure(framesPerSecond)} status frames a second on each link`);
  return { busy: used, framesPerSecond };
}

async function usage(pid: number, o: { windowMs: number; signal: AbortSignal }): Promise<Usage> {
  await pause(SETTLE_MS, o.signal);
  return (await usageOf({ pid }, o)).pid;
}

/** What the host says of itself, in a file. */
async function snapshotOf({ name, url, token }: SimulatedHost, directory: string): Promise<string> {
  const config = await writeConfig(directory, [{ name, url, token }]);
  const status = await execa('node', [resolve('dist/gantry.cjs'), 'status', '--json', '--config', config]);
  const { hosts } = JSON.parse(status.stdout) as { hosts: { snapshot: object }[] }; // what status --json promises
  const path = join(directory, 'snapshot.json');
  await writeFile(path, JSON.stringify(hosts[0]?.snapshot));
  return path;
}

async function writeConfig(directory: string, hosts: readonly object[]): Promise<string> {
  const path = join(directory, 'bridge.yaml');
  await writeFile(path, stringify({ hosts }), { mode: 0o600 });
  return path;
}

function rows(id: string, name: string, measured: Measured, gates: Gates): BenchRow[] {
  const { idle, busy: used, framesPerSecond } = measured;
  return [
    absoluteRow({
      id,
      name: `${name} at 1 Hz: CPU`,
      value: used.cpuPercent,
      unit: '%',
      reference: `the same links, idle: ${figure(idle.cpuPercent)} %`,
      most: gates.cpuPercent,
      note: `${WINDOW_MS / 1_000} s with ${figure(framesPerSecond)} frames a second on each link; of one core, the process alone. The other ends are one process.`,
    }),
    absoluteRow({
      id,
      name: `${name} at 1 Hz: memory`,
      value: used.rssMb,
      unit: 'MB',
      reference: `the same links, idle: ${figure(idle.rssMb)} MB`,
      most: gates.rssMb,
    }),
  ];
}
