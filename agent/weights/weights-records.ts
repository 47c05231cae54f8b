import { existsSync, readFileSync, statSync } from 'node:fs';
import { access, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import type { Log } from '../../shared/log.ts';
import { StateFile } from '../../shared/state-file.ts';
import type { WeightsSource } from './weights-source.ts';
import { keyOf, repositoryDir } from './weights-source.ts';

/** One repository that was downloaded completely. */
export const WeightsRecord = z.object({
  hub: z.enum(['hugging-face', 'modelscope']),
  repository: z.string(),
  revision: z.string().nullable(),
  cacheDir: z.string(),
  /** Its directory, where the layout of the cache is known. */
  snapshot: z.string().nullable(),
  atIso: z.string(),
});
export type WeightsRecord = z.infer<typeof WeightsRecord>;

const WeightsFile = z.object({ version: z.literal(1), weights: z.array(WeightsRecord) });

/** How often, at most, the file is looked at: `gantry-agent pull` may have written it beside the daemon. */
const LOOK_EVERY_MS = 1_000;

/** How often the directories themselves are looked for. */
const SEEK_EVERY_MS = 30_000;

/** Which repositories were downloaded completely, on disk: neither a restart nor another program's download is forgotten. */
export class WeightsRecords {
  readonly #path: string;
  readonly #file: StateFile<z.infer<typeof WeightsFile>>;
  readonly #log: Log;
  #records: readonly WeightsRecord[] = [];
  #gone: ReadonlySet<string> = new Set();
  #soughtMs = -Infinity;
  #lookedMs = -Infinity;
  #changedMs: number | undefined;

  constructor({ stateDir, log }: { stateDir: string; log: Log }) {
    this.#path = join(stateDir, 'weights.json');
    this.#log = log;
    this.#file = new StateFile({ path: this.#path, schema: WeightsFile, log });
  }

  /**
   * The record of this source, unless its directory was gone at the last look. Never waits for the disk of the cache: it may
   * be a share that does not answer.
   */
  find(source: WeightsSource): WeightsRecord | undefined {
    this.#refresh();
    const found = this.#records.find((record) => isOf(record, source));
    if (performance.now() - this.#soughtMs >= SEEK_EVERY_MS) void this.#seek(); // never rejects
    return found?.snapshot === null || !this.#gone.has(found?.snapshot ?? '') ? found : undefined;
  }

  async put(source: WeightsSource, snapshot: string | undefined): Promise<void> {
    const { hub, repository, cacheDir } = source;
    const record = { hub, repository, revision: source.revision ?? null, cacheDir };
    await this.#write(source, [{ ...record, snapshot: snapshot ?? null, atIso: new Date().toISOString() }]);
  }

  /** It is not complete any more: somebody has cleared the cache. */
  async remove(source: WeightsSource): Promise<void> {
    await this.#write(source, []);
  }

  /** Between reading and writing another program may write too; what is lost then is looked for again, not damaged. */
  async #write(source: WeightsSource, instead: readonly WeightsRecord[]): Promise<void> {
    const others = ((await this.#file.read())?.weights ?? []).filter((record) => !isOf(record, source));
    this.#records = [...others, ...instead];
    this.#gone = new Set();
    await this.#file.write({ version: 1, weights: [...this.#records] });
  }

  /** One look at a time, however long it takes. */
  async #seek(): Promise<void> {
    this.#soughtMs = Infinity;
    const snapshots = this.#records.flatMap(({ snapshot }) => snapshot ?? []);
    const gone = new Set<string>();
    for (const snapshot of snapshots) {
      const isThere = await access(snapshot).then(
        () => true,
        () => false,
      );
      if (!isThere) gone.add(snapshot);
    }
    this.#gone = gone;
    this.#soughtMs = performance.now();
  }

  #refresh(): void {
    const nowMs = performance.now();
    if (nowMs - this.#lookedMs < LOOK_EVERY_MS) return;
    this.#lookedMs = nowMs;
    const changedMs = statSync(this.#path, { throwIfNoEntry: false })?.mtimeMs;
    if (changedMs === undefined || changedMs === this.#changedMs) return;
    this.#changedMs = changedMs;
    const parsed = WeightsFile.safeParse(readJson(this.#path));
    if (parsed.success) this.#records = parsed.data.weights;
    // A damaged one is moved aside by the next write.
    else this.#log.warn({ event: 'weights-file-unreadable', path: this.#path });
  }
}

/** Where the Hub's cache has this revision; undefined where it has not. */
export function snapshotOf({ repository, revision = 'main', cacheDir }: WeightsSource): string | undefined {
  const directory = repositoryDir({ repository, cacheDir });
  const commit = refOf(join(directory, 'refs', revision)) ?? revision;
  const snapshot = join(directory, 'snapshots', commit);
  return existsSync(snapshot) ? snapshot : undefined;
}

/** Files of a snapshot are links into the cache, which a person may have cleared by half. */
export async function isWhole(snapshot: string): Promise<boolean> {
  try {
    const entries = await readdir(snapshot, { withFileTypes: true, recursive: true });
    for (const entry of entries) if (entry.isSymbolicLink()) await access(join(entry.parentPath, entry.name));
    return entries.length > 0;
  } catch {
    return false; // gone
  }
}

function isOf(record: WeightsRecord, source: WeightsSource): boolean {
  return keyOf({ ...source, ...record, revision: record.revision ?? undefined }) === keyOf(source);
}

function refOf(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return undefined; // a commit has no ref
  }
}

function readJson(path: string): unknown {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as unknown; // JSON.parse returns `any`
  } catch {
    return undefined; // no schema accepts it
  }
}
