import type { Held } from './ledger-watch.ts';
import type { ScenarioModel } from './models.ts';

/** Weights that went somewhere, as the ledger shows it. */
export type Move = {
  kind: 'load' | 'wake' | 'offload' | 'release';
  alias: string;
  gpu: number;
  /** When it was complete. */
  atMs: number;
  /** From the first MiB to the last; memory is given back at one moment. */
  tookMs: number;
  movedMiB: number;
  /** The engine did it by itself: Step1X-Edit goes to host memory after every edit, and comes back for the next. */
  isByItself: boolean;
};

/** On the GPU: at least this share of the weights. Away from it: less than this share. */
const THERE_SHARE = 0.99;
const AWAY_SHARE = 0.5;

/** PURE. The moves in the trace of a ledger, in the order in which they were complete. */
export function movesIn(trace: readonly Held[], models: readonly ScenarioModel[]): Move[] {
  const moves = models.flatMap((model) => {
    const mine = trace.filter((held) => held.model === model.model);
    const pids = [...new Set(mine.map(({ pid }) => pid))];
    return pids.flatMap((pid) =>
      movesOf(
        mine.filter((held) => held.pid === pid),
        model,
      ),
    );
  });
  return moves.sort((a, b) => a.atMs - b.atMs);
}

/** Those of one process. */
function movesOf(trace: readonly Held[], { alias, engine, weightsMiB }: ScenarioModel): Move[] {
  const moves: Move[] = [];
  let where: 'nowhere' | 'there' | 'away' = 'nowhere';
  /** What it held when it last came to rest, and when it began to grow from there. */
  let restMiB = 0;
  let roseMs: number | undefined;
  for (const { atMs, gpu, heldMiB } of trace) {
    const hadMiB = where === 'there' ? weightsMiB : restMiB;
    const move = (kind: Move['kind'], isByItself = false): void => {
      const movedMiB = Math.abs(Math.min(heldMiB, weightsMiB) - hadMiB);
      moves.push({ kind, alias, gpu, atMs, tookMs: atMs - (roseMs ?? atMs), movedMiB, isByItself });
      restMiB = heldMiB;
      roseMs = undefined;
    };
    if (heldMiB >= THERE_SHARE * weightsMiB) {
      if (where !== 'there') move(where === 'nowhere' ? 'load' : 'wake', where === 'away' && engine === 'step1x-edit');
      where = 'there';
    } else if (heldMiB === 0) {
      if (where !== 'nowhere') move('release');
      where = 'nowhere';
    } else if (where === 'there' && heldMiB < AWAY_SHARE * weightsMiB) {
      move('offload', engine === 'step1x-edit');
      where = 'away';
    } else if (heldMiB > restMiB) roseMs ??= atMs;
  }
  return moves;
}
