import type { HostClient } from './host-client.ts';
import type { Screen } from './screen.ts';
import { gib, timeText } from './screen.ts';

export type Move = 'load' | 'offload' | 'release';

/** A person's load, offload or release: waits until it is done, and says what nvidia-smi showed before and after. */
export async function moveModel(
  client: HostClient,
  {
    model,
    to,
    write,
    say,
  }: Pick<Screen, 'write'> & {
    model: string;
    to: Move;
    /** For what is said meanwhile. */
    say: (text: string) => void;
  },
): Promise<void> {
  for (;;) {
    const moved = await client.ask(`model.${to}`, { model });
    if (moved.readyInMs !== undefined) {
      say(`${moved.message} Usually ${timeText(moved.readyInMs)} more.\n`);
      continue; // the same question joins what is under way
    }
    write(`${moved.message}\n`);
    if (moved.vram === undefined) return;
    const { freeBeforeMiB, freeAfterMiB, heldBeforeMiB, heldAfterMiB } = moved.vram;
    write(
      `VRAM free ${gib(freeBeforeMiB)} -> ${gib(freeAfterMiB)} GiB, held by it ${gib(heldBeforeMiB)} -> ${gib(heldAfterMiB)} GiB\n`,
    );
    return;
  }
}
