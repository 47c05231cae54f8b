import { execa } from 'execa';
import { join } from 'node:path';
import { Deadline, untilAborted } from '../../shared/abort.ts';
import type { ConfiguredModel } from '../configured-model.ts';
import { secretsIn } from '../server/log-lines.ts';
import { ServerLog } from '../server/server-log.ts';
import type { DownloadFailure } from './weights-failure.ts';
import { brokenFailure, noRoomFailure, readFailure, stalledFailure } from './weights-failure.ts';
import { arrivedBytes, removeDeadPartials } from './weights-files.ts';
import type { Meter } from './weights-meter.ts';
import { readMeter, startMeter } from './weights-meter.ts';
import type { Downloader } from './weights-program.ts';
import type { WeightsSource } from './weights-source.ts';
import { arrivalDirs } from './weights-source.ts';

export type DownloadOptions = {
  model: ConfiguredModel;
  source: WeightsSource;
  downloader: Downloader;
  logDir: string;
  stallMs: number;
  everyMs: number;
  /** Left free on the disk of the cache: logs, results and the journal live there too. */
  reserveMiB: number;
  freeBytes: (directory: string) => Promise<number>;
  onMeter: (meter: Meter, total: Total) => void;
  signal: AbortSignal;
};

/** What the whole download brings; null where nobody knows. */
export type Total = { totalMiB: number | null; isEstimate: boolean };

export type DownloadResult =
  /** `brought`: bytes came, so the hub was reached. `hasPartials`: parts of files are left that will be gone on with. */
  { kind: 'ended'; brought: boolean; hasPartials: boolean } | { kind: 'failed'; failure: DownloadFailure };

const LOG_BOUNDS = { maxMiB: 5, keep: 3 };
const DRY_RUN_MS = 60_000;
const TERM_MS = 5_000;
const MIB = 1024 ** 2;
/** During the download less than the reserve may be left for a moment; below this share it ends. */
const LAST_SHARE = 0.25;

/**
 * One run of the downloader, watched by what arrives in its cache. Ends it when no byte comes, when the disk is about to be
 * full, or with the signal; what has arrived stays for the next run.
 */
export async function download(o: DownloadOptions): Promise<DownloadResult> {
  const { model, source, signal } = o;
  const wanted = { alias: model.alias, ...source };
  try {
    const directories = arrivalDirs(source);
    await removeDeadPartials(directories);
    const before = await arrivedBytes(directories);
    const total = await totalOf(o, before);
    const freeMiB = (await o.freeBytes(source.cacheDir)) / MIB;
    const resumableMiB = before.resumableBytes / MIB;
    const needMiB = total.totalMiB === null ? null : Math.max(0, total.totalMiB - resumableMiB);
    if (needMiB !== 0 && freeMiB < (needMiB ?? 0) + o.reserveMiB) return noRoom(o, { needMiB, freeMiB, total });
    const log = await ServerLog.create({
      logDir: join(o.logDir, 'downloads'), // apart: what has a server's log open is taken for a server
      slotId: source.repository,
      bounds: LOG_BOUNDS,
      secrets: secretsIn(source.env),
    });
    return await watched(o, { log, total, baseMiB: (before.bytes - before.resumableBytes) / MIB, directories });
  } catch (error) {
    signal.throwIfAborted();
    const reason = error instanceof Error ? error.message : String(error);
    return { kind: 'failed', failure: brokenFailure({ ...wanted, reason }) };
  }
}

/** Runs it in a group of its own, so that all of it can be ended. */
async function watched(
  o: DownloadOptions,
  { log, total, baseMiB, directories }: { log: ServerLog; total: Total; baseMiB: number; directories: string[] },
): Promise<DownloadResult> {
  const { model, source, signal, stallMs } = o;
  const wanted = { alias: model.alias, ...source, logPath: log.path };
  const doneMiB = async (): Promise<number> => Math.max(0, (await arrivedBytes(directories)).bytes / MIB - baseMiB);
  const first = await doneMiB();
  let meter = startMeter(first, performance.now());
  await using child = await Child.start(o.downloader.argv, { source, log });
  for (;;) {
    o.onMeter(meter, total);
    const exit = await child.exitWithin(o.everyMs, signal);
    signal.throwIfAborted();
    meter = readMeter(meter, { doneMiB: await doneMiB(), nowMs: performance.now() });
    if (exit !== undefined) {
      if (exit.isGood) {
        const { resumableBytes } = await arrivedBytes(directories);
        return { kind: 'ended', brought: meter.doneMiB > first, hasPartials: resumableBytes > 0 };
      }
      return { kind: 'failed', failure: readFailure(await log.lastLines(), { ...wanted, how: exit.how }) };
    }
    await log.bound();
    if (meter.atMs - meter.grewAtMs >= stallMs)
      return { kind: 'failed', failure: stalledFailure({ ...wanted, stallMs }) };
    const freeMiB = (await o.freeBytes(source.cacheDir)) / MIB;
    if (freeMiB >= o.reserveMiB * LAST_SHARE) continue;
    const needMiB = total.totalMiB === null ? null : Math.max(0, total.totalMiB - meter.doneMiB);
    return noRoom(o, { needMiB, freeMiB, total, logPath: log.path });
  }
}

function noRoom(
  { model, source, reserveMiB }: DownloadOptions,
  { total, ...seen }: { needMiB: number | null; freeMiB: number; total: Total; logPath?: string },
): DownloadResult {
  const room = { ...seen, isEstimate: total.isEstimate, reserveMiB, directory: source.cacheDir };
  return { kind: 'failed', failure: noRoomFailure({ alias: model.alias, ...source, ...room }) };
}

/** As the downloader says it, else what the profile says of the weights beyond what is there. */
async function totalOf(o: DownloadOptions, before: { bytes: number; resumableBytes: number }): Promise<Total> {
  const said = o.downloader.dryRun === undefined ? undefined : await dryRun(o.downloader.dryRun, o);
  if (said !== undefined) return { totalMiB: said / MIB, isEstimate: false };
  const restMiB = (o.model.profile.weightsMiB ?? 0) - (before.bytes - before.resumableBytes) / MIB;
  return { totalMiB: restMiB > 0 ? restMiB : null, isEstimate: true };
}

/** What is still to come, in bytes; undefined where this version cannot say, or the hub does not answer. */
async function dryRun(argv: readonly string[], { source, signal }: DownloadOptions): Promise<number | undefined> {
  using limit = new Deadline({ ms: DRY_RUN_MS, signal });
  const [program = '', ...args] = argv;
  const { env, cwd } = source;
  const run = await execa(program, args, {
    ...{ env, cwd, extendEnv: false, stdin: 'ignore', reject: false, maxBuffer: MIB },
    ...{ cancelSignal: limit.signal, forceKillAfterDelay: TERM_MS, cleanup: false },
  });
  signal.throwIfAborted();
  const [, size, unit = ''] = /totalling ([\d.]+) ?([KMGTP]?)/.exec(run.stdout ?? '') ?? [];
  return run.exitCode === 0 && size !== undefined ? Number(size) * 1000 ** ' KMGTP'.indexOf(unit || ' ') : undefined;
}

type Exit = { isGood: boolean; how: string };

/** The downloader with whatever it starts, as one group. */
class Child implements AsyncDisposable {
  readonly #pid: number;
  readonly #exited: Promise<Exit>;
  #exit: Exit | undefined;

  private constructor(pid: number, exited: Promise<Exit>) {
    this.#pid = pid;
    this.#exited = exited.then((exit) => (this.#exit = exit));
  }

  static async start(argv: readonly string[], o: { source: WeightsSource; log: ServerLog }): Promise<Child> {
    const [program = '', ...args] = argv;
    const { env, cwd } = o.source;
    const file = await o.log.openForServer();
    try {
      const fd = file.fd as 9; // execa passes on any descriptor, but its types end at 9
      const child = execa(program, args, {
        ...{ env, cwd, extendEnv: false, stdio: ['ignore', fd, fd], detached: true },
        // The end of the group is ours, also when the agent ends.
        ...{ cleanup: false, forceKillAfterDelay: false, reject: false, buffer: false },
      });
      const exited = new Promise<Exit>((resolve) => {
        child.once('exit', (code: number | null, signal: string | null) =>
          resolve({ isGood: code === 0, how: signal === null ? `ended with code ${code}` : `was ended by ${signal}` }),
        );
      });
      if (child.pid === undefined)
        throw new Error(`${program} cannot be started (${(await child).code ?? 'no reason'})`);
      return new Child(child.pid, exited);
    } finally {
      await file.close();
    }
  }

  /** Undefined while it runs. */
  async exitWithin(ms: number, signal?: AbortSignal): Promise<Exit | undefined> {
    using limit = new Deadline({ ms, ...(signal && { signal }) });
    return await untilAborted(this.#exited, limit.signal).catch(() => undefined); // it never rejects: the time is up
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#kill('SIGTERM');
    if (this.#exit === undefined) await this.exitWithin(TERM_MS);
    this.#kill('SIGKILL');
    await this.#exited;
  }

  /** Also after the end of the leader: what it started may go on. */
  #kill(signal: 'SIGTERM' | 'SIGKILL'): void {
    try {
      process.kill(-this.#pid, signal);
    } catch {
      // Nobody is left in the group.
    }
  }
}
