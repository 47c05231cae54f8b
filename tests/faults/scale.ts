import { AgentFile } from '../../agent/config-schema.ts';
import { LIMITS } from '../../shared/limits.ts';

/**
 * One factor for all times: agents and bridges of these tests run with the settings that are shipped, each multiplied by
 * this, and the bounds of the faults are multiplied likewise. 1 runs them at the times as shipped.
 */
export const FACTOR = Number(process.env['GANTRY_FAULT_FACTOR'] ?? 0.1);

/**
 * Programs do not start faster for a smaller factor, and the simulated nvidia-smi is a Node program, which takes longer
 * than the real one: a busy machine must not look like a hung driver.
 */
const QUERY_FLOOR_MS = 3_000;
const SILENCE_FLOOR_MS = 5_000;

/**
 * A bridge takes its grant in milliseconds: no fault waits for one to expire, and a machine that stands still for half a
 * second must not look like a bridge that is gone.
 */
const GRANT_FLOOR_MS = LIMITS.grantMs.value;
/** Nor must three seconds look like silence: pings are so frequent that nearly all of it is left at any moment. */
const PING_SHARE = 3;

/** `times` and `gpu` of agent.yaml. */
export function agentConfig(): { times: Record<string, string>; gpu: Record<string, string> } {
  const { times, gpu } = AgentFile.parse({});
  return {
    times: {
      ...Object.fromEntries(Object.entries(times).map(([key, ms]) => [key, scaled(ms)])),
      grant: scaled(times.grant, GRANT_FLOOR_MS),
      ping_every: scaled(times.ping_every / PING_SHARE),
    },
    gpu: {
      sample_interval: scaled(gpu.sample_interval),
      silence: scaled(gpu.silence, SILENCE_FLOOR_MS),
      query_timeout: scaled(gpu.query_timeout, QUERY_FLOOR_MS),
    },
  };
}

/** `times` of bridge.yaml. */
export function bridgeConfig(): { times: Record<string, string> } {
  return {
    times: {
      ping_every: scaled(LIMITS.pingEveryMs.value / PING_SHARE),
      silence: scaled(LIMITS.silenceMs.value),
      offer_every: scaled(LIMITS.offerEveryMs.value),
      reconnect_first: scaled(500),
      reconnect_max: scaled(30_000),
      disk_check: scaled(30_000),
    },
  };
}

/** A time of a test that follows the factor, as the settings do. */
export function scaledMs(ms: number): number {
  return Math.max(1, Math.round(ms * FACTOR));
}

function scaled(ms: number, floorMs = 1): string {
  return `${Math.max(Math.min(floorMs, ms), scaledMs(ms))}ms`;
}
