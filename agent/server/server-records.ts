import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import type { Log } from '../../shared/log.ts';
import { StateFile } from '../../shared/state-file.ts';

/** A server process we started. Written before the spawn (without a leader) and after it, removed when its tree is gone. */
export const ServerRecord = z.object({
  slotId: z.string(),
  /** Pid and start time: a pid alone may belong to somebody else by now. */
  leader: z.object({ pid: z.int(), startTime: z.string() }).nullable(),
  /** Open in every process of the tree, and so the one mark that survives renaming and a new session. */
  logPath: z.string(),
  /** Its control group, where it has one. */
  cgroup: z.string().optional(),
  bootId: z.string(),
});
export type ServerRecord = z.infer<typeof ServerRecord>;

const RecordsFile = z.object({ version: z.literal(1), servers: z.array(ServerRecord) });

/** Which server processes live, on disk: what a crashed agent left is found by it. */
export class ServerRecords {
  readonly #file: StateFile<z.infer<typeof RecordsFile>>;
  readonly #records = new Map<string, ServerRecord>();

  constructor({ stateDir, log }: { stateDir: string; log: Log }) {
    this.#file = new StateFile({ path: join(stateDir, 'servers.json'), schema: RecordsFile, log });
  }

  /** What the last agent left running. After a restart of the host that is nothing. */
  async leftOver(): Promise<ServerRecord[]> {
    const file = await this.#file.read();
    return (file?.servers ?? []).filter((record) => record.bootId === bootId());
  }

  async put(record: Omit<ServerRecord, 'bootId'>): Promise<void> {
    this.#records.set(record.slotId, { ...record, bootId: bootId() });
    await this.#write();
  }

  async remove(slotId: string): Promise<void> {
    if (this.#records.delete(slotId)) await this.#write();
  }

  async clear(): Promise<void> {
    this.#records.clear();
    await this.#write();
  }

  #write(): Promise<void> {
    return this.#file.write({ version: 1, servers: [...this.#records.values()] });
  }
}

function bootId(): string {
  try {
    return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  } catch {
    return 'unknown'; // no /proc, so no owned servers either
  }
}
