import { z } from 'zod';
import { EXIT } from '../../shared/exit-codes.ts';
import { MovedJson } from '../fleet/moved-json.ts';
import type { Session } from '../session.ts';
import { withProgress } from './live-progress.ts';
import { printAnswer, printLines } from './screen.ts';

export type Move = 'load' | 'offload' | 'release';

const TOOLS: Record<Move, string> = { load: 'load_model', offload: 'offload_gpu', release: 'release_gpu' };

/** Of what these tools answer, what a person reads. */
const Moved = z.object({ message: z.string(), hosts: z.array(MovedJson) });

/** `gantry load`, `offload` and `release`: moves a model, waits for its end, and says the VRAM before and after. */
export async function moveModel(to: Move, args: { model: string; host?: string }, session: Session): Promise<number> {
  const { screen } = session;
  const { json } = await withProgress(screen, (progress) =>
    session.ask(TOOLS[to], args, { reach: 'hosts', onDoing: (look) => progress.doing(look) }),
  );
  if (screen.isJson) printAnswer(screen, { sentence: '', json });
  else printLines(screen, moveLines(json));
  return json['status'] === 'success' ? EXIT.ok : EXIT.partial;
}

export function moveLines(json: unknown): string[] {
  const { message, hosts } = Moved.parse(json);
  if (hosts.length === 0) return [message];
  return hosts.flatMap(({ host, vram, ...moved }) => [
    `${host}: ${moved.message}`,
    ...(vram === undefined
      ? []
      : [
          `  VRAM free ${vram.free_before_gb.toFixed(1)} -> ${vram.free_after_gb.toFixed(1)} GiB, ` +
            `held by it ${vram.held_before_gb.toFixed(1)} -> ${vram.held_after_gb.toFixed(1)} GiB`,
        ]),
  ]);
}
