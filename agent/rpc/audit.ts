import { createHash } from 'node:crypto';
import type { Method, Role } from '../../shared/protocol.ts';
import type { HostMethod } from '../../shared/protocol.ts';

/**
 * One line of the audit log. Only what the agent itself knows: whose token it was, where it came from, what was asked for
 * and what came of it; nothing that a client says of itself. `object` is the id or name that the action was about.
 */
export type AuditEntry = {
  action: string;
  outcome: string;
  tokenId?: string;
  /** Address of the peer; `host` for commands on this machine. */
  from: string;
  object?: string;
  role?: Role;
  promptSha256?: string;
};
export type Audit = (entry: AuditEntry) => void;

/** Requests that change nothing, or only this link's own wishes. */
const UNAUDITED = new Set<string>(['job.offer', 'job.get', 'slot.decline', 'host.snapshot', 'token.list'] satisfies (
  Method | HostMethod
)[]);

export function isAudited(method: string): boolean {
  return !UNAUDITED.has(method);
}

/** What a request was about, from its parameters as they were parsed. */
export function objectOf(params: unknown): Pick<AuditEntry, 'object' | 'promptSha256'> {
  const { job, jobId, model, name } = fields(params);
  if (job !== undefined) {
    const { jobId: id, request } = fields(job);
    const { prompt } = fields(request);
    const sha256 = createHash('sha256').update(String(prompt)).digest('hex');
    return { object: String(id), promptSha256: sha256 };
  }
  const object = [jobId, model, name].find((each) => typeof each === 'string');
  return object === undefined ? {} : { object };
}

function fields(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {}; // any object has string keys
}
