import type { ManifestLine } from '../../../bridge/fleet/manifest-lines.ts';
import { readLines } from '../../../bridge/fleet/manifest-lines.ts';
import type { Line } from '../../../agent/job/journal-lines.ts';
import type { FileNode, Node } from '../world/disk.ts';
import { contentOf, durableBytes } from '../world/disk.ts';
import { ownerOf } from '../world/picture.ts';
import type { Piece, Way } from '../world/network.ts';
import type { Machine } from '../world/world.ts';
import { world } from '../world/world.ts';
import { AGENT_STATE } from './agent.ts';
import { BRIDGE_STATE, OUTPUT } from './bridge.ts';

export type PromiseId = 'P1' | 'P2' | 'P3' | 'P4' | 'P5' | 'P6' | 'P7' | 'P8' | 'defect';
export type Violation = { promise: PromiseId; atMs: number; text: string };

type Key = { jobId: string; attempt: number };

/** Watches one history, and says at once when a promise is broken. It knows the disks and the wire, not the product. */
export class Checks {
  readonly violations: Violation[] = [];
  readonly #machines = new Map<string, Machine>();
  /** Where the manifest of each job is, once it was seen. */
  readonly #manifests = new Map<string, string>();
  /** Files under final names, by laptop and job. */
  readonly #visible = new Map<string, string>();
  /** Acknowledgements that bridges sent, by host, job and attempt. */
  readonly #acked = new Set<string>();
  /** Takes that an agent answered, by host, job and attempt. */
  readonly #accepted = new Map<string, { host: string; laptop: string } & Key>();
  /** Engine runs per host and job name, with how many of them are under way. */
  readonly #runs = new Map<string, { total: number; open: number }>();
  /** Disks that refused something once: lines that only inform may be missing there. */
  readonly wasFull = new Set<string>();
  /** Jobs that a person cancelled: nobody wants their results any more. */
  readonly unwanted = new Set<string>();
  readonly counts = { accepted: 0, acked: 0, files: 0, runs: 0, duplicates: 0 };

  /** A result or an image got its final name. */
  onNamed: (machine: string) => void = () => undefined;

  addHost(machine: Machine): void {
    this.#machines.set(machine.name, machine);
    const onName = (path: string): void => {
      if (RESULT.test(path)) this.onNamed(machine.name);
    };
    machine.disk.watch = { onName, onUnlink: (path, node) => this.#p3Unlinked(machine, path, node) };
  }

  addLaptop(machine: Machine): void {
    this.#machines.set(machine.name, machine);
    machine.disk.watch = {
      onName: (path, node) => this.#p2p4Named(machine, path, node),
      onUnlink: (path) => this.#outputUnlinked(machine, path),
    };
  }

  fail(promise: PromiseId, text: string): void {
    world().say('BROKEN', () => `${promise} ${text}`);
    this.violations.push({ promise, atMs: world().nowMs, text });
  }

  /** Every piece on the wire, as it is sent. */
  onSent(way: Way, direction: 'toHost' | 'toBridge', piece: Piece): void {
    if (piece.kind !== 'message') return;
    const { text } = piece;
    world().mix(text.length);
    world().say('wire', () => `${way.bridge.name} ${direction} ${way.host.name} ${text.slice(0, 300)}`);
    if (direction === 'toHost') {
      if (text.includes('"method":"job.take"')) this.#taking(way, text);
      else if (text.includes('"method":"job.ack"')) this.#acking(way, text);
    } else if (text.includes('"missingInputs":[')) this.#taken(way, text);
    else if (text.includes('"method":"job.done"')) this.#done(way, text);
  }

  /** P1: `sent` is on the laptop's disk before the take. P5: nothing that is done is taken again. */
  #taking(way: Way, text: string): void {
    const { jobId, attempt } = keyIn(text, /"job":\{"jobId":"([^"]+)","attempt":(\d+)/);
    const lines = this.#manifestLines(way.bridge, jobId, 'durable');
    const isSent = lines.some(
      (line) => line.type === 'sent' && line.jobId === jobId && line.host === way.host.name && line.attempt === attempt,
    );
    if (!isSent) this.fail('P1', `job.take ${short(jobId)}/${attempt} before its line "sent" is on the disk`);
    const file = this.#visible.get(`${way.bridge.name} ${jobId}`);
    if (file !== undefined) this.fail('P5', `${short(jobId)} is taken again, and its file ${file} is there`);
    if (lines.some((line) => line.type === 'saved' && line.jobId === jobId)) {
      this.fail('P5', `${short(jobId)} is taken again, and its manifest says that it is saved`);
    }
  }

  /** P1: accepted means journaled. */
  #taken(way: Way, text: string): void {
    const { jobId, attempt } = keyIn(text, /"job":\{"jobId":"([^"]+)","attempt":(\d+)/);
    if (
      !this.#journalLines(way.host, 'durable').some((line) => line.event === 'taken' && isOf(line, { jobId, attempt }))
    ) {
      this.fail('P1', `${way.host.name} accepted ${short(jobId)}/${attempt} before its line "taken" is on the disk`);
    }
    const key = `${way.host.name} ${jobId} ${attempt}`;
    if (!this.#accepted.has(key)) this.counts.accepted += 1;
    this.#accepted.set(key, { host: way.host.name, laptop: way.bridge.name, jobId, attempt });
  }

  /** P3: what is told as done is on the host's disk, with its line. */
  #done(way: Way, text: string): void {
    const { jobId, attempt } = keyIn(text, /"jobId":"([^"]+)","attempt":(\d+)/);
    const sha256 = /"sha256":"([0-9a-f]+)"/.exec(text)?.[1] ?? '';
    const path = `${AGENT_STATE}/results/${way.bridge.name}/${jobId}.${attempt}.${sha256}.png`;
    const isLine = this.#journalLines(way.host, 'durable').some(
      (line) => line.event === 'done' && isOf(line, { jobId, attempt }),
    );
    if (!isLine)
      this.fail('P3', `${way.host.name} told ${short(jobId)}/${attempt} as done before its line is on the disk`);
    const bytes = way.host.disk.durable(path);
    if (bytes === undefined || ownerOf(bytes) === undefined) {
      this.fail(
        'P3',
        `${way.host.name} told ${short(jobId)}/${attempt} as done, and its result would not survive a power loss`,
      );
    }
  }

  /** P3: a result is acknowledged once the file and its line `saved` are safe, or once its job is over otherwise. */
  #acking(way: Way, text: string): void {
    const { jobId, attempt } = keyIn(text, /"jobId":"([^"]+)","attempt":(\d+)/);
    this.#acked.add(`${way.host.name} ${jobId} ${attempt}`);
    this.counts.acked += 1;
    const lines = this.#manifestLines(way.bridge, jobId, 'durable').filter(
      (line) => 'jobId' in line && line.jobId === jobId,
    );
    const saved = lines.find((line) => line.type === 'saved');
    if (saved?.type === 'saved') {
      const bytes = way.bridge.disk.durable(saved.path);
      if (bytes === undefined || ownerOf(bytes)?.jobId !== jobId) {
        this.fail('P3', `${short(jobId)} is acknowledged, and its file would not survive a power loss`);
      }
      return;
    }
    const isOver = lines.some(
      (line) =>
        line.type === 'failed' ||
        line.type === 'cancelled' ||
        ((line.type === 'attempt-failed' || line.type === 'lost' || line.type === 'refused') &&
          line.host === way.host.name &&
          line.attempt === attempt),
    );
    if (!isOver && !this.unwanted.has(jobId) && !this.wasFull.has(way.bridge.name)) {
      this.fail(
        'P3',
        `${short(jobId)}/${attempt} is acknowledged to ${way.host.name}, and nothing says that it is over`,
      );
    }
  }

  /** P3: a result that was told as done goes only after its acknowledgement. */
  #p3Unlinked(machine: Machine, path: string, node: Node): void {
    const [, jobId, attempt] = RESULT.exec(path) ?? [];
    if (jobId === undefined || attempt === undefined || node.kind !== 'file') return;
    if (this.#acked.has(`${machine.name} ${jobId} ${attempt}`)) return;
    const key = { jobId, attempt: Number(attempt) };
    const ends = this.#journalLines(machine, 'now').filter((line) => isOf(line, key));
    if (ends.some((line) => line.event === 'done') && !ends.some((line) => line.event === 'acked')) {
      this.fail(
        'P3',
        `${machine.name} deleted the result of ${short(jobId)}/${attempt}, which nobody has acknowledged`,
      );
    }
  }

  /** P2 and P4: what becomes visible is whole, on the disk, and the only file of its job. */
  #p2p4Named(machine: Machine, path: string, node: Node): void {
    if (!isFinalName(path) || node.kind !== 'file') return;
    this.onNamed(machine.name);
    this.#wholeFile(path, node, 'became visible');
    if (durableBytes(node).length < node.size) this.fail('P4', `${path} became visible before its bytes were synced`);
    const owner = ownerOf(contentOf(node));
    if (owner === undefined) return;
    this.counts.files += 1;
    const key = `${machine.name} ${owner.jobId}`;
    const other = this.#visible.get(key);
    if (other !== undefined && other !== path)
      this.fail('P2', `${short(owner.jobId)} has two files: ${other} and ${path}`);
    this.#visible.set(key, path);
  }

  #outputUnlinked(machine: Machine, path: string): void {
    if (!isFinalName(path)) return;
    this.fail('P2', `${path} was removed or replaced`);
    for (const [key, at] of this.#visible) if (key.startsWith(machine.name) && at === path) this.#visible.delete(key);
  }

  #wholeFile(path: string, node: FileNode, when: string): void {
    if (ownerOf(contentOf(node)) === undefined)
      this.fail('P4', `${path} ${when} and is not whole (${node.size} bytes)`);
  }

  /** After a power loss, and at the end: P4 for all that is visible. */
  lookAtOutput(machine: Machine): void {
    for (const key of [...this.#visible.keys()]) if (key.startsWith(`${machine.name} `)) this.#visible.delete(key);
    for (const [path, node] of filesBelow(machine, OUTPUT)) {
      if (!isFinalName(path)) continue;
      this.#wholeFile(path, node, 'is visible after a power loss');
      const owner = ownerOf(contentOf(node));
      if (owner === undefined) continue;
      const key = `${machine.name} ${owner.jobId}`;
      const other = this.#visible.get(key);
      if (other !== undefined) this.fail('P2', `${short(owner.jobId)} has two files: ${other} and ${path}`);
      this.#visible.set(key, path);
    }
  }

  /** P6: before an agent listens, every accepted job has its end on the disk. */
  onListen(machine: Machine): void {
    if (machine.disk.isFull) return; // the line is written as soon as there is room; it is known as interrupted
    for (const run of this.#runs.values()) run.open = run.open > 0 ? run.open : 0;
    const lines = this.#journalLines(machine, 'durable');
    const ended = new Set(lines.filter((line) => line.event !== 'taken' && line.event !== 'acked').map(keyOf));
    for (const line of lines) {
      if (line.event !== 'taken' || ended.has(keyOf(line))) continue;
      this.fail('P6', `${machine.name} listens, and its journal has no end for ${short(line.jobId)}/${line.attempt}`);
    }
    const known = new Set(lines.filter((line) => line.event === 'taken').map(keyOf));
    for (const { host, jobId, attempt } of this.#accepted.values()) {
      if (host !== machine.name || known.has(`${jobId} ${attempt}`)) continue;
      this.fail('P1', `${machine.name} accepted ${short(jobId)}/${attempt}, and knows nothing of it after its restart`);
    }
  }

  /** P6: an engine only ever works on an accepted job that has no end yet. */
  onRunStart(machine: Machine, jobName: string): void {
    this.counts.runs += 1;
    const key = `${machine.name} ${jobName}`;
    const run = this.#runs.get(key) ?? { total: 0, open: 0 };
    this.#runs.set(key, { total: run.total + 1, open: run.open + 1 });
    if (run.open > 0) this.fail('P2', `${machine.name} runs ${jobName} twice at the same time`);
    const lines = this.#journalLines(machine, 'durable');
    const taken = lines.filter((line) => line.event === 'taken' && line.job.request.prompt === jobName);
    if (taken.length === 0) this.fail('P6', `${machine.name} runs ${jobName}, which its journal does not have`);
    const open = taken.filter((line) => !lines.some((end) => isEnd(end) && keyOf(end) === keyOf(line)));
    if (taken.length > 0 && open.length === 0)
      this.fail('P6', `${machine.name} runs ${jobName}, which has ended there`);
    if (run.total + 1 > taken.length) this.fail('P2', `${machine.name} runs ${jobName} more often than it was taken`);
  }

  onRunEnd(machine: Machine, jobName: string): void {
    const key = `${machine.name} ${jobName}`;
    const run = this.#runs.get(key);
    if (run !== undefined) this.#runs.set(key, { ...run, open: Math.max(0, run.open - 1) });
  }

  /** All that ran there is gone with the process. */
  onAgentDeath(machine: Machine): void {
    for (const [key, run] of this.#runs)
      if (key.startsWith(`${machine.name} `)) this.#runs.set(key, { ...run, open: 0 });
  }

  /** P6: a stopped agent leaves no run. */
  onAgentStopped(machine: Machine): void {
    for (const [key, run] of this.#runs) {
      if (key.startsWith(`${machine.name} `) && run.open > 0)
        this.fail('P6', `${key} still runs when the agent has stopped`);
    }
  }

  /** Whole manifests of a laptop, as a reader finds them now. */
  manifests(machine: Machine): { path: string; lines: ManifestLine[] }[] {
    return filesBelow(machine, `${BRIDGE_STATE}/batches`)
      .filter(([path]) => path.endsWith('/manifest.jsonl'))
      .map(([path, node]) => ({ path, lines: readLines(contentOf(node).toString('utf8')).lines }));
  }

  journal(machine: Machine): Line[] {
    return this.#journalLines(machine, 'now');
  }

  runsOf(jobName: string): number {
    let total = 0;
    for (const [key, run] of this.#runs) if (key.endsWith(` ${jobName}`)) total += run.total;
    return total;
  }

  #manifestLines(machine: Machine, jobId: string, which: 'durable' | 'now'): ManifestLine[] {
    const known = this.#manifests.get(jobId);
    const path =
      known ??
      filesBelow(machine, `${BRIDGE_STATE}/batches`).find(
        ([name, node]) => name.endsWith('/manifest.jsonl') && contentOf(node).includes(`"jobId":"${jobId}"`),
      )?.[0];
    if (path === undefined) return [];
    this.#manifests.set(jobId, path);
    const node = machine.disk.find(path);
    const bytes =
      which === 'durable' ? machine.disk.durable(path) : node?.kind === 'file' ? contentOf(node) : undefined;
    // The product's own program wrote them; only what a power loss left half is not JSON.
    return linesAbout(bytes, jobId).flatMap((text) => (parsed(text) as ManifestLine | undefined) ?? []);
  }

  #journalLines(machine: Machine, which: 'durable' | 'now'): Line[] {
    const path = `${AGENT_STATE}/journal/journal.jsonl`;
    const node = machine.disk.find(path);
    const bytes =
      which === 'durable' ? machine.disk.durable(path) : node?.kind === 'file' ? contentOf(node) : undefined;
    return (bytes?.toString('utf8') ?? '').split('\n').flatMap((text) => {
      return text.trim() === '' ? [] : ((parsed(text) as Line | undefined) ?? []);
    });
  }
}

const RESULT = /\/results\/[^/]+\/([0-9a-f-]{36})\.(\d+)\.[0-9a-f]{64}\.png$/;

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

export function short(jobId: string): string {
  return jobId.slice(0, 8);
}

function filesBelow(machine: Machine, directory: string): [string, FileNode][] {
  const node = machine.disk.find(directory);
  if (node?.kind !== 'directory') return [];
  return [...node.entries].flatMap(([name, child]): [string, FileNode][] => {
    const path = `${directory}/${name}`;
    if (child.kind === 'file') return [[path, child]];
    return child.kind === 'directory' ? filesBelow(machine, path) : [];
  });
}

function isFinalName(path: string): boolean {
  return path.startsWith(`${OUTPUT}/`) && !path.endsWith('.part');
}

function linesAbout(bytes: Buffer | undefined, jobId: string): string[] {
  const text = bytes?.toString('utf8') ?? '';
  return text
    .slice(0, text.lastIndexOf('\n') + 1)
    .split('\n')
    .filter((line) => line.includes(jobId));
}

function keyIn(text: string, pattern: RegExp): Key {
  const [, jobId = '', attempt = '0'] = pattern.exec(text) ?? [];
  return { jobId, attempt: Number(attempt) };
}

function isOf(line: Line, key: Key): boolean {
  return line.jobId === key.jobId && line.attempt === key.attempt;
}

function keyOf(line: Line): string {
  return `${line.jobId} ${line.attempt}`;
}

function isEnd(line: Line): boolean {
  return line.event === 'done' || line.event === 'failed' || line.event === 'cancelled';
}
