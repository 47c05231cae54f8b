import type { AppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { ConfiguredModel } from './configured-model.ts';

/** Where the weights of a model are. 'absent' also means that nobody has looked yet. */
export type WeightsState =
  | { kind: 'present' }
  | { kind: 'absent' }
  | {
      kind: 'downloading';
      doneMiB: number;
      totalMiB: number | null;
      mibPerSecond: number | null;
      leftMs: number | null;
    }
  | { kind: 'failed'; error: AppError; retry: { atMs: number } | 'never' };

export type WeightsOptions = { stateDir: string; logDir: string; log: Log; onChange: () => void };

/** Which weights are on this host's disk. Downloads them, one model after another, before a server needs them. */
export class Weights implements AsyncDisposable {
  constructor(_options: WeightsOptions) {}

  stateOf(_model: ConfiguredModel): WeightsState {
    return { kind: 'present' };
  }

  /** Settles when they are there; joins a download under way. A caller that leaves does not end it. */
  pull(_model: ConfiguredModel, _signal: AbortSignal): Promise<void> {
    return Promise.resolve();
  }

  /** What a server of this model gets in its environment. */
  environment(_model: ConfiguredModel): Record<string, string> {
    return {};
  }

  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}
