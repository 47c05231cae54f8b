import type { z } from 'zod';
import type { HostSnapshot } from '../../shared/host-snapshot.ts';
import type { HostMethod, HostResult, Method, Role, TokenEntry } from '../../shared/protocol.ts';
import { HOST_REQUESTS, REQUESTS } from '../../shared/protocol.ts';
import type { Exchange } from '../job/exchange.ts';
import type { Session } from '../job/session.ts';

/** What a method may use. The signal ends with the link, which ends the waiting and not the work. */
type AnyContext = { exchange: Exchange; signal: AbortSignal };
export type BridgeContext = AnyContext & { session: Session };
export type HostContext = AnyContext & {
  snapshot: () => HostSnapshot;
  reload: () => Promise<HostResult<'host.reload'>>;
  invite: (role: Role) => HostResult<'invite.create'>;
  tokens: { list: () => Promise<TokenEntry[]>; revoke: (name: string) => Promise<void> };
};

/** A method with its schema: parameters are parsed once, here, and typed from then on. */
export type BoundMethod<C> = {
  role: Role;
  parse: (
    params: unknown,
  ) =>
    { success: true; params: unknown; call: (context: C) => Promise<object> } | { success: false; error: z.ZodError };
};
export type MethodTable<C> = Readonly<Record<string, BoundMethod<C>>>;

/** What bridges and the commands on the host may ask alike. */
const COMMON = {
  'model.load': bind(REQUESTS['model.load'], ({ model }, { exchange, signal }: AnyContext) =>
    exchange.move(model, 'load', signal),
  ),
  'model.offload': bind(REQUESTS['model.offload'], ({ model }, { exchange, signal }: AnyContext) =>
    exchange.move(model, 'offload', signal),
  ),
  'model.release': bind(REQUESTS['model.release'], ({ model }, { exchange, signal }: AnyContext) =>
    exchange.move(model, 'release', signal),
  ),
  'host.drain': bind(REQUESTS['host.drain'], (_params, { exchange }: AnyContext) => exchange.drain()),
  'host.resume': bind(REQUESTS['host.resume'], (_params, { exchange }: AnyContext) => exchange.resume()),
};

/** Every request of a bridge but `hello`, which opens the session the others need. */
export const BRIDGE_METHODS = {
  ...COMMON,
  'job.offer': bind(REQUESTS['job.offer'], ({ lines }, { session }: BridgeContext) => {
    session.offer(lines);
    return {};
  }),
  'job.take': bind(REQUESTS['job.take'], (params, { session }: BridgeContext) => session.take(params)),
  'slot.decline': bind(REQUESTS['slot.decline'], ({ grantId }, { session }: BridgeContext) => {
    session.decline(grantId);
    return {};
  }),
  'job.cancel': bind(REQUESTS['job.cancel'], ({ jobId }, { session }: BridgeContext) => session.cancel(jobId)),
  'job.get': bind(REQUESTS['job.get'], ({ jobId }, { session }: BridgeContext) => session.get(jobId)),
  'job.ack': bind(REQUESTS['job.ack'], async (params, { session }: BridgeContext) => {
    await session.ack(params);
    return {};
  }),
} satisfies Record<Exclude<Method, 'hello'>, BoundMethod<BridgeContext>>;

/** Every request of the commands on this host. They have no jobs. */
export const HOST_METHODS = {
  ...COMMON,
  'host.snapshot': bind(HOST_REQUESTS['host.snapshot'], (_params, { snapshot }: HostContext) => ({
    snapshot: snapshot(),
  })),
  'host.reload': bind(HOST_REQUESTS['host.reload'], (_params, { reload }: HostContext) => reload()),
  'invite.create': bind(HOST_REQUESTS['invite.create'], ({ role }, { invite }: HostContext) => invite(role)),
  'token.list': bind(HOST_REQUESTS['token.list'], async (_params, { tokens }: HostContext) => ({
    tokens: await tokens.list(),
  })),
  'token.revoke': bind(HOST_REQUESTS['token.revoke'], async ({ name }, { tokens }: HostContext) => {
    await tokens.revoke(name);
    return {};
  }),
} satisfies Record<HostMethod, BoundMethod<HostContext>> & MethodTable<HostContext>;

function bind<P extends z.ZodType, R extends z.ZodType, C>(
  { role, params }: { role: Role; params: P; result: R },
  run: (params: z.output<P>, context: C) => z.output<R> | Promise<z.output<R>>,
): BoundMethod<C> {
  return {
    role,
    parse: (raw) => {
      const parsed = params.safeParse(raw);
      if (!parsed.success) return { success: false, error: parsed.error };
      // Every result in the tables is an object schema; `object` is all that the reply needs to know.
      const { data } = parsed;
      return { success: true, params: data, call: async (context) => (await run(data, context)) as object };
    },
  };
}
