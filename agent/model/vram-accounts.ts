import { readlinkSync } from 'node:fs';
import { errorCode } from '../../shared/errors.ts';
import type { ForeignProcess } from '../../shared/host-snapshot.ts';
import type { Log } from '../../shared/log.ts';
import type { GpuReading, GpuSampler } from '../gpu/gpu-sampler.ts';
import type { ComputeApp } from '../gpu/smi-rows.ts';
import type { VramLook, VramMeasure } from '../gpu/vram-measure.ts';
import { freedMiB, measureVram } from '../gpu/vram-measure.ts';
import type { ModelServer } from './model-server.ts';
import type { Numbering } from './pid-numbering.ts';
import { numberingOf } from './pid-numbering.ts';
import { titleOf } from '../server/process-table.ts';
import type { Holder, Owners, Person } from './vram-owners.ts';
import { ownersOf } from './vram-owners.ts';
import type { VramClaim } from '../gpu/vram-verifier.ts';
import { isBack } from '../gpu/vram-verifier.ts';

/** What an account shows of one GPU. `degraded`: whose memory did not come back, and who still holds it. */
export type Account = { oursMiB: number; foreign: ForeignProcess[]; unlisted?: string; degraded?: string };

type Shown = {
  look: VramLook;
  pidsOf: ReadonlyMap<ModelServer, readonly number[]>;
  people: ReadonlyMap<number, Person>;
};

/** The pid namespace that the machine starts with has this number in every kernel. */
const FIRST_NAMESPACE = 'pid:[4026531836]';

/** More than the driver's own coming and going. */
const MOVED_MIB = 512;

/** Whose VRAM is whose: ours by the process tree of each server, all else foreign. And what dead servers still owe. */
export class VramAccounts {
  readonly #sampler: GpuSampler;
  readonly #servers: () => readonly ModelServer[];
  readonly #log: Log;
  readonly #isFirstNamespace = isFirstNamespace();
  #numbering: Numbering = { kind: 'here', isProven: false };
  #debts: VramClaim[] = [];
  /** Undefined where the driver did not answer the last time. */
  #last: VramLook | undefined;
  /** What came while the last look was taken may be in one half of it only. */
  #beforeLast: readonly GpuReading[] = [];
  /** The last look that there was, with whom it showed. */
  #shown: Shown | undefined;
  #listedBefore: ReadonlySet<number> = new Set();

  constructor({ sampler, servers, log }: { sampler: GpuSampler; servers: () => readonly ModelServer[]; log: Log }) {
    this.#sampler = sampler;
    this.#servers = servers;
    this.#log = log;
  }

  of(uuid: string): Account {
    const { unlisted, ...owners } = this.#ownersOf(uuid);
    const degraded = this.#degraded(uuid);
    if (degraded !== undefined) return { ...owners, degraded };
    return { ...owners, ...(unlisted !== undefined && { unlisted }) };
  }

  /** These GPUs as the last look showed them: what is there before a server starts. */
  measure(gpus: readonly string[]): VramMeasure | undefined {
    return this.#last && measureVram(this.#last, { gpus, pids: [] });
  }

  /** Free memory has moved since the last look where none of ours works: somebody came or went. */
  isBehind(): boolean {
    const servers = this.#servers();
    return this.#sampler.readings().some((now) => {
      if (servers.some((server) => server.isWorkingOn([now.uuid]))) return false;
      return [this.#beforeLast, this.#last?.readings ?? []].some((seen) => hasMoved(seen, now));
    });
  }

  hasDebts(): boolean {
    return this.#debts.length > 0;
  }

  /** Memory of a dead server did not come back here: no grants until it does. */
  isDegraded(uuid: string): boolean {
    return this.#debts.some(({ gpus }) => gpus.includes(uuid));
  }

  owe(claim: VramClaim): void {
    this.#debts.push(claim);
    const reasons = claim.gpus.map((uuid) => this.#degraded(uuid));
    this.#log.error({ event: 'gpu-degraded', gpus: claim.gpus, missingMiB: this.#missingMiB(claim), reasons });
  }

  /**
   * Reads who holds what, now, and tells every server. Whoever looks, looks for all. Undefined where the driver does not
   * answer: then what was seen before stays.
   */
  async look(signal: AbortSignal): Promise<VramLook | undefined> {
    if (this.#sampler.readings().length === 0 && this.#sampler.problem !== undefined) return undefined;
    try {
      const before = this.#sampler.readings();
      const apps = await this.#sampler.computeApps(signal);
      const isNumberedHere = this.#isNumberedHere(apps);
      // Free memory after the list, so that no process can be in one of them only for longer than this takes.
      const look = { apps, isNumberedHere, readings: await this.#sampler.sampleNow(signal) };
      this.#last = look;
      this.#beforeLast = before;
      this.#keep(look);
      return look;
    } catch (error) {
      if (!signal.aborted) this.#log.warn({ event: 'vram-unreadable', error: String(error) });
      this.#last = undefined;
      return undefined;
    }
  }

  #isNumberedHere(apps: readonly ComputeApp[]): boolean {
    const last = this.#numbering;
    this.#numbering = numberingOf({
      ours: new Set(this.#servers().flatMap((server) => server.pids())),
      listed: apps.map(({ pid }) => ({ pid, lives: lives(pid) })),
      before: this.#listedBefore,
      last,
      isFirstNamespace: this.#isFirstNamespace,
    });
    this.#listedBefore = new Set(apps.map(({ pid }) => pid));
    if (this.#numbering.kind !== last.kind) this.#log.info({ event: 'gpu-pids', numbered: this.#numbering.kind });
    return this.#numbering.kind === 'here';
  }

  #keep(look: VramLook): void {
    const pidsOf = new Map<ModelServer, number[]>();
    for (const server of this.#servers()) {
      const pids = server.pids();
      pidsOf.set(server, pids);
      const measure = measureVram(look, { gpus: server.gpus, pids });
      // Without a live process it is on its way through its death, which needs the look from before.
      if (measure !== undefined && pids.length > 0) server.note(measure);
    }
    this.#shown = { look, pidsOf, people: new Map(look.apps.map(({ pid }) => [pid, personOf(pid)])) };
    this.#debts = this.#debts.filter((claim) => {
      const now = measureVram(look, claim);
      if (now === undefined || !isBack(claim, now)) return true;
      this.#log.info({ event: 'gpu-recovered', gpus: claim.gpus, freeMiB: now.freeMiB });
      return false;
    });
  }

  /** With what each server is known to hold by now: its own look may have followed the one for all. */
  #ownersOf(uuid: string): Owners {
    const reading = this.#shown?.look.readings.find((candidate) => candidate.uuid === uuid);
    if (this.#shown === undefined || reading === undefined) return { oursMiB: 0, foreign: [] };
    const { look, pidsOf, people } = this.#shown;
    const holders = [...pidsOf].map(([{ gpus, heldMiB }, pids]): Holder => ({ gpus, heldMiB, pids }));
    return ownersOf(reading, { look, holders, personOf: (pid) => people.get(pid) });
  }

  /** In a sentence, with the processes that nvidia-smi still lists. */
  #degraded(uuid: string): string | undefined {
    const claims = this.#debts.filter(({ gpus }) => gpus.includes(uuid));
    if (claims.length === 0) return undefined;
    const missingMiB = claims.reduce((sum, claim) => sum + this.#missingMiB(claim), 0);
    const pids = new Set(claims.flatMap((claim) => claim.pids));
    const rows = this.#last?.isNumberedHere === true ? this.#last.apps : [];
    const holders = rows
      .filter((app) => pids.has(app.pid) && app.gpuUuid === uuid)
      .map(({ pid, name, usedMiB }) => `${name ?? 'unknown'} (pid ${pid}, ${usedMiB ?? 'unknown'} MiB)`);
    const who = `of the ended server with pid ${[...pids].join(', ')}`;
    const listed =
      holders.length === 0 ? 'nvidia-smi lists no holder of it' : `nvidia-smi still lists ${holders.join(', ')}`;
    return `${missingMiB} MiB ${who} did not come back; ${listed}. No work starts here until it is back.`;
  }

  /** What is not back yet; all of it where nothing can be read. */
  #missingMiB(claim: VramClaim): number {
    const now = this.#last && measureVram(this.#last, claim);
    const freed = now === undefined ? 0 : freedMiB(claim.before, now);
    return Math.round(Math.min(claim.heldMiB, Math.max(0, claim.heldMiB - freed)));
  }
}

function personOf(pid: number): Person {
  const title = titleOf(pid);
  return { lives: lives(pid), title: title === 'unknown' ? undefined : title };
}

/** Also where /proc hides the processes of others. */
function lives(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return errorCode(error) === 'EPERM';
  }
}

function isFirstNamespace(): boolean {
  try {
    return readlinkSync('/proc/self/ns/pid') === FIRST_NAMESPACE;
  } catch {
    return true; // no /proc: no namespaces either
  }
}

function hasMoved(seen: readonly GpuReading[], now: GpuReading): boolean {
  const before = seen.find(({ uuid }) => uuid === now.uuid)?.freeMiB ?? null;
  return now.freeMiB !== null && before !== null && Math.abs(now.freeMiB - before) > MOVED_MIB;
}
