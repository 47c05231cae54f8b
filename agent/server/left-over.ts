import { basename, dirname } from 'node:path';
import { realpath } from 'node:fs/promises';
import { pause } from '../../shared/abort.ts';
import type { Log } from '../../shared/log.ts';
import type { GpuSampler } from '../gpu/gpu-sampler.ts';
import type { ComputeApp } from '../gpu/smi-rows.ts';
import { Cgroup } from './cgroup.ts';
import type { CgroupRoot } from './cgroup.ts';
import type { ProcessId, ProcessStat, ProcessTable } from './process-table.ts';
import { ancestors, isAlive, titleOf } from './process-table.ts';
import { ProcessTree } from './process-tree.ts';
import { ServerLog } from './server-log.ts';
import type { ServerRecord } from './server-records.ts';

export type LeftOverOptions = {
  records: readonly ServerRecord[];
  cgroups: CgroupRoot | undefined;
  logDir: string;
  table: ProcessTable;
  sampler: GpuSampler;
  times: { stopGraceMs: number; vramBackMs: number };
  log: Log;
  signal: AbortSignal;
};

type LeftOver = { slotId: string; leader: ProcessId | null; logPath: string; cgroup?: Cgroup };

const POLL_MS = 250;

/**
 * Ends the servers that a crashed agent left running, all at the same time, and waits until their VRAM is not listed. They
 * are found by what it wrote down, by the control groups it made, and by who has a log of it: one of these is left
 * whatever moment it died in.
 */
export async function endLeftOver(o: LeftOverOptions): Promise<void> {
  const byRecord = o.records.map(({ slotId, leader, logPath, cgroup }): LeftOver => ({
    // A dead one's pid says nothing any more: a daemon may have opened its session under it and gone since.
    ...{ slotId, leader: leader !== null && isAlive(leader) ? leader : null, logPath },
    ...(cgroup !== undefined && { cgroup: new Cgroup(cgroup) }),
  }));
  // The kernel names open files by their real path. Without a directory nothing was ever started.
  const logDir = await realpath(o.logDir).catch(() => o.logDir);
  const known = new Set(byRecord.map(({ logPath }) => logPath));
  const found = [...byRecord];
  for (const candidate of [...byCgroup({ ...o, logDir }), ...byLog({ ...o, logDir })]) {
    if (known.has(candidate.logPath)) continue;
    known.add(candidate.logPath);
    found.push(candidate);
  }
  await Promise.all(found.map((leftOver) => end(leftOver, o)));
  o.signal.throwIfAborted();
}

function byCgroup({ cgroups, logDir, table }: LeftOverOptions): LeftOver[] {
  return (cgroups?.leftOver() ?? []).map(({ cgroup, name }) => {
    const logPath = `${logDir}/${name}.log`; // each is named after the log of its start
    const pids = new Set(cgroup.pids());
    const leader = topOf(table.read().filter(({ pid }) => pids.has(pid)));
    return { slotId: ServerLog.slotOf(logPath) ?? name, leader, logPath, cgroup };
  });
}

/**
 * Whoever writes to a server's log, or was born to it, and has no agent above it any more. The servers of another living agent that was given
 * the same log directory have: their parent is that agent, and no process that we came from.
 */
function byLog({ logDir, table, log }: LeftOverOptions): LeftOver[] {
  const writers = new Map<string, ProcessStat[]>();
  for (const stat of table.read()) {
    const logPath = stat.isDead
      ? undefined
      : stat.logs.find((path) => dirname(path) === logDir && ServerLog.slotOf(path) !== undefined);
    if (logPath !== undefined) writers.set(logPath, [...(writers.get(logPath) ?? []), stat]);
  }
  const above = ancestors(process.pid);
  return [...writers].flatMap(([logPath, members]) => {
    const leader = topOf(members);
    const slotId = ServerLog.slotOf(logPath) ?? basename(logPath);
    if (leader !== null && above.includes(leader.parent)) return { slotId, leader, logPath };
    const pids = members.map(({ pid }) => pid);
    log.warn({ event: 'server-of-another-agent', slotId, pids, parent: leader?.parent, logPath });
    return [];
  });
}

/** The oldest whose parent is not one of them. */
function topOf(members: readonly ProcessStat[]): ProcessStat | null {
  const pids = new Set(members.map(({ pid }) => pid));
  const tops = members.filter(({ parent }) => !pids.has(parent));
  return tops.sort((a, b) => Number(a.startTime) - Number(b.startTime))[0] ?? null;
}

async function end({ slotId, leader, logPath, cgroup }: LeftOver, o: LeftOverOptions): Promise<void> {
  const { sampler, table, times, signal, log } = o;
  const tree = new ProcessTree({ leader, logPath, cgroup, table });
  const pids = tree.scan();
  if (pids.length === 0) return cgroup?.remove();
  const apps = await sampler.computeApps(signal).catch(() => []); // who hangs in the driver must not keep us from ending it
  const processes = pids.map((pid) => ({ pid, name: titleOf(pid), ...heldBy(pid, apps) }));
  log.warn({ event: 'server-left-over', slotId, processes, logPath });
  const { killed, survivors } = await tree.stop({ graceMs: times.stopGraceMs });
  if (killed.length > 0) log.warn({ event: 'server-forced', slotId, processes: killed });
  if (survivors.length > 0) log.error({ event: 'server-not-killed', slotId, pids: survivors });
  // What it held before is unknown; that nvidia-smi does not list it any more is what can be waited for.
  const endMs = performance.now() + times.vramBackMs;
  while (performance.now() < endMs && !signal.aborted) {
    const left = await sampler.computeApps(signal).catch(() => []); // without a driver there is nothing to wait for
    if (!left.some(({ pid }) => pids.includes(pid))) return;
    await pause(Math.min(POLL_MS, times.vramBackMs), signal);
  }
}

function heldBy(pid: number, apps: readonly ComputeApp[]): { usedMiB?: number } {
  const mine = apps.filter((app) => app.pid === pid && app.usedMiB !== null);
  return mine.length === 0 ? {} : { usedMiB: mine.reduce((sum, { usedMiB }) => sum + (usedMiB ?? 0), 0) };
}
