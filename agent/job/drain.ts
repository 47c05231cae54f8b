import { join } from 'node:path';
import { z } from 'zod';
import { AppError, toAppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { StateFile } from '../../shared/state-file.ts';

const DrainFile = z.object({ version: z.literal(1), isDraining: z.boolean() });

/** Whether a person has taken this host out of service. Kept in the state directory, because a restart must not end it. */
export class Drain {
  readonly #file: StateFile<z.infer<typeof DrainFile>>;
  #isDraining = false;

  private constructor({ stateDir, log }: { stateDir: string; log: Log }) {
    this.#file = new StateFile({ path: join(stateDir, 'drain.json'), schema: DrainFile, log });
  }

  static async open(options: { stateDir: string; log: Log }): Promise<Drain> {
    const drain = new Drain(options);
    drain.#isDraining = (await drain.#file.read())?.isDraining ?? false;
    return drain;
  }

  get isDraining(): boolean {
    return this.#isDraining;
  }

  /** Holds at once; resolves when it would also hold after a restart. */
  async set(isDraining: boolean): Promise<void> {
    this.#isDraining = isDraining;
    try {
      await this.#file.write({ version: 1, isDraining });
    } catch (error) {
      const now = isDraining ? 'The host drains' : 'The host takes part again';
      const reason = toAppError(error).message;
      throw new AppError('DISK_FULL', `${now}, but a restart of the agent will not know of it: ${reason}`, {
        cause: error,
      });
    }
  }
}
