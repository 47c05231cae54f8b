import type { HostSnapshot } from '../../shared/host-snapshot.ts';

/** A place of the agent's, and who may use it. `user` is the one that the service runs as. */
export type PlaceFact = {
  what: 'state' | 'logs' | 'cache';
  path: string;
  exists: boolean;
  freeMiB: number | undefined;
  /** Undefined where there is no such user yet. */
  isUsersToWrite: boolean | undefined;
};

export type ModelFact = {
  alias: string;
  engine: 'vllm-omni' | 'step1x-edit';
  /** Undefined for one that somebody else starts. */
  program: { path: string; found: string | undefined; isUsersToRun: boolean | undefined } | undefined;
  cwd: string | undefined;
  attach: string | undefined;
  /** Versions of what is installed beside the program, by package. */
  packages: Readonly<Record<string, string>>;
  trustsRemoteCode: boolean;
};

export type UnitFact = {
  activeState: string;
  isEnabled: boolean;
  result: string;
  restarts: number;
  user: string;
  /** Home directories are not in the view of the unit, but for these paths. */
  hidesHomes: boolean;
  openPaths: readonly string[];
  writablePaths: readonly string[];
};

/** All that `gantry-agent doctor` looks at; what could not be found out is undefined. */
export type HostFacts = {
  /** As typed behind a command of ours, so that it is about the same agent: empty, or it begins with a blank. */
  flags: string;
  node: { version: string; path: string };
  today: string;
  config: {
    path: string;
    problems: readonly string[];
    warnings: readonly string[];
    /** Undefined where the file cannot be used. */
    listen: { host: string; port: number; isLoopback: boolean; isEncrypted: boolean } | undefined;
  };
  driver: { version: string; cuda: string | undefined; answerMs: number } | { problem: string };
  gpus: readonly { index: number; name: string; isPersistent: boolean | undefined }[];
  /** That are not ours, on the GPUs. */
  processes: readonly { pid: number; name: string; usedMiB: number | undefined }[] | undefined;
  models: readonly ModelFact[];
  places: readonly PlaceFact[];
  /** Of whoever listens on our port, where that is not our agent. */
  portHolder: string | undefined;
  certificate: { fingerprint: string } | { problem: string } | undefined;
  tokens: { count: number; path: string; mode: number } | undefined;
  unit: UnitFact | undefined;
  agent: { version: string; snapshot: HostSnapshot } | { problem: string };
  ownVersion: string;
  /** Processes of model servers that no agent owns. */
  orphans: readonly { pid: number; log: string }[];
  shmMiB: number | undefined;
};
