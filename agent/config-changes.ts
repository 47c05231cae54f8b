import type { AgentConfig, AgentTimes } from './config.ts';
import type { ConfiguredModel } from './configured-model.ts';
import { isSameServer } from './model/same-server.ts';

/** Times that are read where they are used; the others are built into a part of the agent when it starts. */
const LIVE_TIMES = [
  'stopGraceMs',
  'vramBackMs',
  'vramBackOffloadedMs',
  'startDeadlineMs',
  'stallMs',
  'jobFloorMs',
  'jobLimitMs',
  'jobGraceMs',
  'heldAwayMs',
  'turnMs',
  'retryFirstMs',
] as const satisfies (keyof AgentTimes)[];

type Setting = { key: string; of: (config: AgentConfig) => unknown; isLive: boolean };

const SETTINGS: readonly Setting[] = [
  { key: 'listen', of: ({ listen }) => listen, isLive: false },
  { key: 'tls', of: ({ tls }) => tls, isLive: false },
  { key: 'names', of: ({ names }) => names, isLive: false },
  { key: 'state_dir', of: ({ stateDir }) => stateDir, isLive: false },
  { key: 'log_dir', of: ({ logDir }) => logDir, isLive: false },
  { key: 'log_level', of: ({ logLevel }) => logLevel, isLive: true },
  { key: 'gpu.reserve', of: ({ gpu }) => gpu.reserveMiB, isLive: true },
  { key: 'gpu.yield_to_foreign', of: ({ gpu }) => gpu.yieldsToForeign, isLive: true },
  { key: 'gpu.sample_interval', of: ({ gpu }) => gpu.sampleIntervalMs, isLive: false },
  { key: 'gpu.silence', of: ({ gpu }) => gpu.silenceMs, isLive: false },
  { key: 'gpu.query_timeout', of: ({ gpu }) => gpu.queryTimeoutMs, isLive: false },
  { key: 'gpu.nvidia_smi', of: ({ gpu }) => gpu.nvidiaSmi, isLive: false },
  { key: 'memory.reserve', of: ({ ramReserveMiB }) => ramReserveMiB, isLive: true },
  { key: 'logs', of: ({ logs }) => logs, isLive: false },
];

/** What differs between two configurations: what a running agent can take over, and what has to wait for its next start. */
export function configChanges(before: AgentConfig, after: AgentConfig): { changes: string[]; atNextStart: string[] } {
  const differing = [...SETTINGS, ...timeSettings(after.times)].filter(({ of }) => isOther(of(before), of(after)));
  return {
    changes: [
      ...differing.filter(({ isLive }) => isLive).map(({ key }) => `${key}: changed`),
      ...modelChanges(before.models, after.models),
    ],
    atNextStart: differing.filter(({ isLive }) => !isLive).map(({ key }) => key),
  };
}

/** The configuration of an agent that runs as `before` says and takes over what it can of `after`. */
export function takenOver(before: AgentConfig, after: AgentConfig): AgentConfig {
  const times = { ...before.times };
  for (const name of LIVE_TIMES) times[name] = after.times[name];
  const { reserveMiB, yieldsToForeign } = after.gpu;
  return {
    ...before,
    logLevel: after.logLevel,
    gpu: { ...before.gpu, reserveMiB, yieldsToForeign },
    ramReserveMiB: after.ramReserveMiB,
    models: after.models,
    warnings: after.warnings,
    times,
  };
}

function timeSettings(times: AgentTimes): Setting[] {
  const live: readonly string[] = LIVE_TIMES;
  return (Object.keys(times) as (keyof AgentTimes)[]).map((name) => ({
    key: `times.${name.replace(/Ms$/, '').replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)}`,
    of: ({ times: each }) => each[name],
    isLive: live.includes(name),
  })); // Object.keys knows no names; these are the fields of AgentTimes
}

function modelChanges(before: readonly ConfiguredModel[], after: readonly ConfiguredModel[]): string[] {
  const removed = before.filter(({ alias }) => !after.some((next) => next.alias === alias));
  return [
    ...removed.map(({ alias }) => `models.${alias}: removed; what runs ends first`),
    ...after.flatMap((next) => {
      const old = before.find(({ alias }) => alias === next.alias);
      if (old === undefined) return [`models.${next.alias}: added`];
      if (!isSameServer(old, next)) return [`models.${next.alias}: its server is replaced when its work has ended`];
      return isOther(old, next) ? [`models.${next.alias}: changed, its server stays`] : [];
    }),
  ];
}

function isOther(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) !== JSON.stringify(b);
}
