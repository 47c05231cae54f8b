import { basename } from 'node:path';
import { AppError, errorCode } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { Cgroup, CgroupRoot } from './cgroup.ts';
import { childEnvironment } from './child-environment.ts';
import type { ConfiguredModel } from '../configured-model.ts';
import type { Engine } from '../engine/engine.ts';
import type { PortLease, PortTable } from './free-port.ts';
import { secretsIn } from './log-lines.ts';
import type { ProcessTable } from './process-table.ts';
import { words } from './server-failure.ts';
import type { LogBounds } from './server-log.ts';
import { ServerLog } from './server-log.ts';
import { ServerProcess } from './server-process.ts';
import type { ServerRecords } from './server-records.ts';

export type StartOptions = {
  slotId: string;
  model: ConfiguredModel;
  engine: Engine;
  gpus: readonly string[];
  records: ServerRecords;
  ports: PortTable;
  table: ProcessTable;
  /** Undefined where control groups are not ours to make. */
  cgroups: () => CgroupRoot | undefined;
  /** What is known of its weights, as that they are complete and the hub need not be asked. */
  extraEnv: () => Record<string, string>;
  logDir: string;
  logs: LogBounds;
  stopGraceMs: number;
  log: Log;
  signal: AbortSignal;
};

export type StartedServer = { process: ServerProcess; port: PortLease };

/** Starts the process of a server, on record before and after: should the agent die meanwhile, the next one finds it. */
export async function startServer(o: StartOptions): Promise<StartedServer> {
  const { slotId, model, engine, gpus, records, signal } = o;
  const { launch } = model;
  if (launch.kind !== 'owned') throw new Error(`${slotId} is attached: nothing to start`);
  const port = await o.ports.take();
  let process: ServerProcess | undefined;
  let cgroup: Cgroup | undefined;
  try {
    const { argv, env: engineEnv } = engine.command({ model, port: port.number });
    const env = childEnvironment({ gpus, engine: engineEnv, weights: o.extraEnv(), model: launch.env });
    const log = await ServerLog.create({ logDir: o.logDir, slotId, bounds: o.logs, secrets: secretsIn(env) });
    cgroup = makeCgroup(o, log);
    const record = { slotId, logPath: log.path, ...(cgroup && { cgroup: cgroup.path }) };
    await records.put({ ...record, leader: null });
    signal.throwIfAborted();
    const onLogProblem = (error: unknown): void =>
      o.log.warn({ event: 'log-not-bounded', slotId, error: words(error) });
    process = await ServerProcess.start({ argv, cwd: launch.cwd, env, log, cgroup, table: o.table, onLogProblem });
    await records.put({ ...record, leader: { pid: process.pid, startTime: process.startTime } });
    return { process, port };
  } catch (error) {
    port[Symbol.dispose]();
    if (process === undefined) await cgroup?.remove();
    await process?.stop({ graceMs: o.stopGraceMs });
    await records.remove(slotId).catch(() => undefined); // the disk is what failed, and the record names nobody that lives
    if (error instanceof AppError) throw error;
    const isDiskFull = errorCode(error) === 'ENOSPC';
    const message = `The server of ${model.alias} was not started: ${words(error)}`;
    throw new AppError(isDiskFull ? 'DISK_FULL' : 'MODEL_FAILED', message, { cause: error });
  }
}

function makeCgroup({ cgroups, slotId, log }: StartOptions, { path }: ServerLog): Cgroup | undefined {
  try {
    return cgroups()?.make(basename(path, '.log'));
  } catch (error) {
    log.warn({ event: 'cgroup-not-made', slotId, error: words(error) }); // the sweep ends its processes too
    return undefined;
  }
}
