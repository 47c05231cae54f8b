import { createHash as realCreateHash } from 'node:crypto';
import { asError } from './abort.ts';
import type { SimulatedSignal } from './abort.ts';
import { clearTimeout, performance, setTimeout as setTimer } from './globals.ts';
import { world } from './world.ts';

// One module in the place of several of Node's: perf_hooks, timers/promises, crypto, os.

export { performance };

export const createHash = realCreateHash;

export function randomUUID(): string {
  return world().rng.uuid();
}

export function randomBytes(count: number): Buffer {
  // At the start of the program there is no world yet: parts are told apart by pid alone then.
  try {
    return world().rng.bytes(count);
  } catch {
    return Buffer.alloc(count, 0xab);
  }
}

export function setTimeout(ms: number, value?: unknown, o: { signal?: SimulatedSignal } = {}): Promise<unknown> {
  const { signal } = o;
  return new Promise((resolve, reject) => {
    if (signal?.aborted === true) return reject(asError(signal.reason));
    const onAbort = (): void => {
      clearTimeout(timer);
      reject(asError(signal?.reason));
    };
    const timer = setTimer(() => {
      signal?.removeEventListener('abort', onAbort);
      resolve(value);
    }, ms);
    signal?.addEventListener('abort', onAbort, { once: true });
  });
}

/** Of node:timers/promises: others have their turn, and this process may die meanwhile. */
export function setImmediate(): Promise<void> {
  return new Promise((resolve) => void world().after(0, world().current, resolve));
}

export function userInfo(): { uid: number } {
  return { uid: 1000 };
}

export function hostname(): string {
  return world().current?.machine.name ?? 'nowhere';
}

export const tmpdir = (): string => '/tmp';
export const homedir = (): string => '/home';
