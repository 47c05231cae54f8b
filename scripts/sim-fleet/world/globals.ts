import { SimulatedController, SimulatedSignal } from './abort.ts';
import type { Event } from './world.ts';
import { world } from './world.ts';

// What every product file finds under the names of Node's globals; put before its first line by the bundler.

type Timer = { event: Event; unref: () => Timer; ref: () => Timer; refresh: () => Timer };

function simSetTimeout(run: () => void, ms = 0): Timer {
  const start = (): Event => world().timer(ms, world().current, run);
  const refresh = (): Timer => {
    simClearTimeout(timer);
    timer.event = start();
    return timer;
  };
  const timer: Timer = { event: start(), unref: () => timer, ref: () => timer, refresh };
  return timer;
}

function simClearTimeout(timer: Timer | undefined): void {
  if (timer !== undefined) timer.event.run = undefined;
}

SimulatedSignal.timeoutBy = (ms, ring) => void simSetTimeout(ring, ms);

const RealDate = Date;
class SimulatedDate extends RealDate {
  constructor(value?: number | string) {
    super(value ?? world().wallMs);
  }

  static override now(): number {
    return Math.floor(world().wallMs);
  }
}

const clock = {
  now: (): number => {
    const { current, nowMs } = world();
    return current === undefined ? nowMs : current.machine.monoMs(nowMs);
  },
};

const simProcess = {
  platform: 'linux',
  get pid(): number {
    return world().current?.pid ?? 0;
  },
  kill: (pid: number, _signal: number): true => {
    const processes = world().current?.machine.processes ?? new Set();
    if ([...processes].some((one) => one.pid === pid)) return true;
    throw Object.assign(new Error('kill ESRCH'), { code: 'ESRCH' });
  },
  getuid: (): number => 1000,
};

function simRandom(): number {
  return world().rng.next();
}

export {
  SimulatedController as AbortController,
  SimulatedSignal as AbortSignal,
  SimulatedDate as Date,
  clock as performance,
  simProcess as process,
  simClearTimeout as clearTimeout,
  simSetTimeout as setTimeout,
  simRandom,
};
