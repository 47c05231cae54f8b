import type { AppError } from '../../shared/errors.ts';

/** Where a server answers: a process of ours, or someone else's. */
export type ServerRef = { kind: 'owned'; pid: number; port: number } | { kind: 'attached'; url: string };

/** Times are those of the monotonic clock. */
export type ModelState =
  | { kind: 'released' }
  | { kind: 'loading' | 'ready' | 'offloading' | 'offloaded'; server: ServerRef }
  | { kind: 'releasing'; server: ServerRef; cause: 'asked' | AppError }
  | { kind: 'failed'; error: AppError; retry: { atMs: number } | 'never' };

/** Every death passes through `releasing`: `failed` means that nothing of the tree lives. */
export const TRANSITIONS = {
  released: ['loading', 'failed'],
  loading: ['ready', 'releasing'],
  ready: ['offloading', 'releasing'],
  offloading: ['offloaded', 'ready', 'releasing'],
  offloaded: ['loading', 'releasing'],
  releasing: ['released', 'failed'],
  failed: ['loading', 'released'],
} as const satisfies Record<ModelState['kind'], readonly ModelState['kind'][]>;

export function canEnter(from: ModelState['kind'], to: ModelState['kind']): boolean {
  const next: readonly ModelState['kind'][] = TRANSITIONS[from];
  return next.includes(to);
}
