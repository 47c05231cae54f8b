import { z } from 'zod';
import { HostSnapshot, ModelStateKind } from './host-snapshot.ts';
import { Job, JobClass, JobError, JobResult, ModelId, Sha256, Uuid } from './job.ts';

/** Changes only when an old peer would be wrong. */
export const PROTOCOL_VERSION = 1;
export const SUBPROTOCOL = 'gantry.v1';
export const WS_PATH = '/v1/ws';

/** Why a link was closed by a peer. 4000 to 4999 are the application's own. */
export const CLOSE_CODES = {
  INVALID_FRAME: { code: 4400, meaning: 'A frame did not match its schema; it is logged with its path.' },
  AUTH_REVOKED: { code: 4401, meaning: 'The token was revoked.' },
  VERSION_MISMATCH: { code: 4406, meaning: 'hello named a protocol version this peer does not speak.' },
  REPLACED: { code: 4409, meaning: 'A newer session of the same bridge came; this one ended.' },
  TOO_SLOW: { code: 4408, meaning: 'The peer did not read what was sent.' },
  TOO_MANY_REQUESTS: { code: 4429, meaning: 'More unanswered requests than the limit.' },
} as const satisfies Record<string, { code: number; meaning: string }>;

/** State of a job on the agent, by key (token, jobId, attempt). */
export const AgentJobState = z.enum(['accepted', 'running', 'done', 'failed', 'cancelled', 'unknown']).catch('unknown');
export type AgentJobState = z.infer<typeof AgentJobState>;

export const AgentJob = z.object({
  jobId: Uuid,
  attempt: z.int(),
  state: AgentJobState,
  result: JobResult.optional(),
  error: JobError.optional(),
});
export type AgentJob = z.infer<typeof AgentJob>;

/** One line of an offer: this bridge's waiting jobs of one model and class. `inFlight` counts its jobs on all hosts. */
export const OfferLine = z.object({
  model: ModelId,
  class: JobClass,
  count: z.int().positive(),
  workMs: z.number().nonnegative(),
  longestMs: z.number().nonnegative(),
  maxMegapixels: z.number().positive(),
  inFlight: z.int().nonnegative(),
  /** Place of this host among those the line is offered to, slowest first. Absent from older bridges. */
  rank: z.int().nonnegative().optional(),
});
export type OfferLine = z.infer<typeof OfferLine>;

/** VRAM in MiB as nvidia-smi shows it, summed over the model's GPUs; what an engine claims is never in here. */
export const VramChange = z.object({
  freeBeforeMiB: z.number(),
  freeAfterMiB: z.number(),
  heldBeforeMiB: z.number(),
  heldAfterMiB: z.number(),
});
export type VramChange = z.infer<typeof VramChange>;

/**
 * Answer to model.load, model.offload and model.release. `vram` is there once the transition ended; before, after 40 s,
 * `readyInMs` says how much longer it usually takes and calling again joins it.
 */
export const ModelMove = z.object({
  model: ModelId,
  state: ModelStateKind,
  /** What was really done: an engine that cannot offload is released. */
  done: z.enum(['load', 'wake', 'offload', 'release', 'nothing', 'unknown']).catch('unknown'),
  message: z.string(),
  tookMs: z.number().nonnegative(),
  readyInMs: z.number().nonnegative().optional(),
  vram: VramChange.optional(),
  heldAwayMs: z.number().nonnegative(),
});
export type ModelMove = z.infer<typeof ModelMove>;

export const Role = z.enum(['viewer', 'operator']);
export type Role = z.infer<typeof Role>;

const none = z.object({});
const jobKey = z.object({ jobId: Uuid });
const onModel = z.object({ model: ModelId });

/** Every request a bridge may send, with the role it needs. */
export const REQUESTS = {
  hello: {
    role: 'viewer',
    meaning: 'First request. Answers which jobs of this token the agent has that are not yet acknowledged.',
    params: z.object({ version: z.int(), bridgeId: Uuid, name: z.string().max(100) }),
    result: z.object({ agentId: z.string(), epoch: z.string(), jobs: z.array(AgentJob) }),
  },
  'job.offer': {
    role: 'operator',
    meaning: "Replaces this bridge's whole offer.",
    params: z.object({ lines: z.array(OfferLine).max(200) }),
    result: none,
  },
  'job.take': {
    role: 'operator',
    meaning: 'Binds a job to a granted slot. Answered once the job is journaled: from then on it is accepted.',
    params: z.object({ grantId: Uuid, job: Job }),
    result: z.object({ job: AgentJob, missingInputs: z.array(Sha256) }),
  },
  'slot.decline': {
    role: 'operator',
    meaning: 'No job for this grant; the line is not granted again before it is offered again.',
    params: z.object({ grantId: Uuid }),
    result: none,
  },
  'job.cancel': {
    role: 'operator',
    meaning: 'Ends a job. A running engine finishes first and keeps the slot until then; its result is dropped.',
    params: jobKey,
    result: AgentJob,
  },
  'job.get': { role: 'operator', meaning: 'Present state of the latest attempt.', params: jobKey, result: AgentJob },
  'job.ack': {
    role: 'operator',
    meaning: 'The result was saved and verified; the agent may delete it.',
    params: z.object({ jobId: Uuid, attempt: z.int(), sha256: Sha256.optional() }),
    result: none,
  },
  'model.load': {
    role: 'operator',
    meaning: 'Brings a model to ready, evicting idle ones.',
    params: onModel,
    result: ModelMove,
  },
  'model.offload': {
    role: 'operator',
    meaning: 'Moves the weights of an idle model to host RAM and gives its VRAM back.',
    params: onModel,
    result: ModelMove,
  },
  'model.release': {
    role: 'operator',
    meaning: "Ends an idle model's server and gives everything back.",
    params: onModel,
    result: ModelMove,
  },
  'host.drain': {
    role: 'operator',
    meaning: 'No grants from now on; running jobs end. Lasts until host.resume, also over a restart of the agent.',
    params: none,
    result: z.object({ isDraining: z.boolean(), running: z.int().nonnegative() }),
  },
  'host.resume': {
    role: 'operator',
    meaning: 'Grants again.',
    params: none,
    result: z.object({ isDraining: z.boolean(), running: z.int().nonnegative() }),
  },
} as const satisfies Record<string, { role: Role; meaning: string; params: z.ZodType; result: z.ZodType }>;

/** A token as people see it. Times are those of the host. */
export const TokenEntry = z.object({
  name: z.string(),
  role: Role,
  createdAt: z.string(),
  lastUsedAt: z.string().nullable(),
});
export type TokenEntry = z.infer<typeof TokenEntry>;

/** `POST /v1/pair`: the code of an invite for a token. */
export const PairRequest = z.object({ code: z.string().max(64), name: z.string().max(100) });
export const PairAnswer = z.object({ token: z.string().max(200), role: Role, agentId: z.string().max(100) });
export type PairAnswer = z.infer<typeof PairAnswer>;
export const PAIR_PATH = '/v1/pair';

/** What only the agent's own socket on its host answers, beside model.* and host.* above. Whoever can open it is an operator. */
export const HOST_REQUESTS = {
  'host.snapshot': {
    role: 'viewer',
    meaning: 'The whole state of the host, as bridges get it.',
    params: none,
    result: z.object({ snapshot: HostSnapshot }),
  },
  'host.reload': {
    role: 'operator',
    meaning: 'Reads agent.yaml again, as SIGHUP does. Where there are problems nothing was changed.',
    params: none,
    result: z.object({
      problems: z.array(z.string()),
      changes: z.array(z.string()),
      warnings: z.array(z.string()),
    }),
  },
  'invite.create': {
    role: 'operator',
    meaning: 'A code that lets one laptop in, with the line that `gantry add` takes.',
    params: z.object({ role: Role }),
    result: z.object({
      line: z.string(),
      /** Where the port can be reached, `address:port`; the line names the same. */
      addresses: z.array(z.string()),
      isLoopbackOnly: z.boolean(),
      isEncrypted: z.boolean(),
      role: Role,
      expiresInMs: z.number().nonnegative(),
    }),
  },
  'token.list': {
    role: 'operator',
    meaning: 'Who has access. The text of a token is kept nowhere.',
    params: none,
    result: z.object({ tokens: z.array(TokenEntry) }),
  },
  'token.revoke': {
    role: 'operator',
    meaning: 'Ends a token: its links close, its jobs end, its results are deleted.',
    params: z.object({ name: z.string().max(100) }),
    result: none,
  },
} as const satisfies Record<string, { role: Role; meaning: string; params: z.ZodType; result: z.ZodType }>;

export type HostMethod = keyof typeof HOST_REQUESTS;
export type HostResult<M extends HostMethod> = z.infer<(typeof HOST_REQUESTS)[M]['result']>;

export type Method = keyof typeof REQUESTS;
export type Params<M extends Method> = z.infer<(typeof REQUESTS)[M]['params']>;
export type Result<M extends Method> = z.infer<(typeof REQUESTS)[M]['result']>;

/** Every notification an agent may send. Those about a job go to every session of the token that made it. */
export const NOTIFICATIONS = {
  snapshot: {
    meaning: 'The whole state of the host, after hello and after a gap.',
    params: z.object({ revision: z.int(), snapshot: HostSnapshot }),
  },
  delta: {
    meaning: 'The fields of the snapshot that changed, each whole. A revision that is not the last plus one is a gap.',
    params: z.object({ revision: z.int(), changed: HostSnapshot.partial() }),
  },
  'slot.grant': {
    meaning: 'A slot is free for one job of this line. `startsInMs` is how long until it would run.',
    params: z.object({
      grantId: Uuid,
      slotId: z.string(),
      model: ModelId,
      class: JobClass,
      startsInMs: z.number().nonnegative(),
    }),
  },
  'slot.revoke': { meaning: 'A grant that was not answered in time went back.', params: z.object({ grantId: Uuid }) },
  'job.progress': {
    meaning: 'What an accepted job is doing. `steps` is 0 while the model is made ready.',
    params: z.object({
      jobId: Uuid,
      attempt: z.int(),
      state: AgentJobState,
      step: z.int().nonnegative(),
      steps: z.int().nonnegative(),
      detail: z.string(),
    }),
  },
  'job.done': {
    meaning: 'The result is stored and may be fetched.',
    params: z.object({ jobId: Uuid, attempt: z.int(), result: JobResult }),
  },
  'job.failed': {
    meaning: 'The attempt ended without a result.',
    params: z.object({ jobId: Uuid, attempt: z.int(), error: JobError }),
  },
  'job.cancelled': {
    meaning: 'The job ended because it was cancelled.',
    params: z.object({ jobId: Uuid, attempt: z.int() }),
  },
} as const satisfies Record<string, { meaning: string; params: z.ZodType }>;

export type NotificationName = keyof typeof NOTIFICATIONS;
export type Notification = {
  [N in NotificationName]: { method: N; params: z.infer<(typeof NOTIFICATIONS)[N]['params']> };
}[NotificationName];

/** JSON-RPC 2.0. An id on a frame with a method makes it a request; every request gets one reply. */
export const Frame = z.union([
  z.object({ jsonrpc: z.literal('2.0'), id: z.int(), method: z.string(), params: z.unknown() }),
  z.object({ jsonrpc: z.literal('2.0'), method: z.string(), params: z.unknown() }),
  z.object({
    jsonrpc: z.literal('2.0'),
    id: z.int(),
    error: z.object({ code: z.int(), message: z.string(), data: JobError }),
  }),
  z.object({ jsonrpc: z.literal('2.0'), id: z.int(), result: z.unknown() }),
]);
export type Frame = z.infer<typeof Frame>;

/** The JSON-RPC number of an application error; the string code is in `error.data.code`. */
export const APPLICATION_ERROR = -32_000;
export const METHOD_NOT_FOUND = -32_601;

/** Narrows a notification to its type, or tells why it is invalid; an unknown method is undefined and ignored. */
export function parseNotification(method: string, params: unknown): Notification | undefined {
  if (!Object.hasOwn(NOTIFICATIONS, method)) return undefined;
  const known = NOTIFICATIONS[method as NotificationName]; // narrowed by hasOwn in the line above
  return { method, params: known.params.parse(params) } as Notification; // pairs method and params by construction
}
