import { readdir, readFile } from 'node:fs/promises';
import { cpus } from 'node:os';
import { performance } from 'node:perf_hooks';

/** USER_HZ of Linux: what /proc counts in. */
const TICKS_PER_SECOND = 100;

export type Shares = {
  /** Of all cores: this process and everything it started, simulators included. */
  ours: number;
  /** Of all cores: everybody else on the machine. */
  others: number;
};

/** Runs `work` and tells how busy the machine was meanwhile, and with whom. */
export async function withShares<T>(work: () => Promise<T>): Promise<{ result: T; shares: Shares }> {
  const [ours, busy, startMs] = [await ourTicks(), await busyTicks(), performance.now()];
  const result = await work();
  const all = ((performance.now() - startMs) / 1000) * TICKS_PER_SECOND * cpus().length;
  const oursShare = ((await ourTicks()) - ours) / all;
  const busyShare = ((await busyTicks()) - busy) / all;
  return { result, shares: { ours: oursShare, others: Math.max(0, busyShare - oursShare) } };
}

/** A process that has ended counts with its parent, once that has waited for it. */
async function ourTicks(): Promise<number> {
  const stats = new Map<number, { parent: number; ticks: number }>();
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const text = await readFile(`/proc/${name}/stat`, 'utf8').catch(() => ''); // it has just ended
    const fields = text
      .slice(text.lastIndexOf(')') + 2)
      .split(' ')
      .map(Number);
    const [parent = 0, ticks = 0] = [fields[1], fields.slice(11, 15).reduce((sum, part) => sum + part, 0)];
    if (text !== '') stats.set(Number(name), { parent, ticks });
  }
  const tree = [process.pid];
  for (const pid of tree) for (const [child, { parent }] of stats) if (parent === pid) tree.push(child);
  return tree.reduce((sum, pid) => sum + (stats.get(pid)?.ticks ?? 0), 0);
}

async function busyTicks(): Promise<number> {
  const [line = ''] = (await readFile('/proc/stat', 'utf8')).split('\n');
  const [user = 0, nice = 0, system = 0, , , irq = 0, softIrq = 0] = line.split(/\s+/).slice(1).map(Number);
  return user + nice + system + irq + softIrq;
}
