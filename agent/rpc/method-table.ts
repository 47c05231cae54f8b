import type { z } from 'zod';
import type { Method, Role } from '../../shared/protocol.ts';
import { REQUESTS } from '../../shared/protocol.ts';
import type { Exchange } from '../job/exchange.ts';
import type { Session } from '../job/session.ts';

/** What a method may use. The signal ends with the link, which ends the waiting and not the work. */
export type MethodContext = { session: Session; exchange: Exchange; signal: AbortSignal };

type Call = (context: MethodContext) => Promise<object>;

/** A method with its schema: parameters are parsed once, here, and typed from then on. */
export type BoundMethod = {
  role: Role;
  parse: (params: unknown) => { success: true; call: Call } | { success: false; error: z.ZodError };
};

/** Every request but `hello`, which opens the session the others need. */
export const METHODS = {
  'job.offer': bind(REQUESTS['job.offer'], ({ lines }, { session }) => {
    session.offer(lines);
    return {};
  }),
  'job.take': bind(REQUESTS['job.take'], (params, { session }) => session.take(params)),
  'slot.decline': bind(REQUESTS['slot.decline'], ({ grantId }, { session }) => {
    session.decline(grantId);
    return {};
  }),
  'job.cancel': bind(REQUESTS['job.cancel'], ({ jobId }, { session }) => session.cancel(jobId)),
  'job.get': bind(REQUESTS['job.get'], ({ jobId }, { session }) => session.get(jobId)),
  'job.ack': bind(REQUESTS['job.ack'], async (params, { session }) => {
    await session.ack(params);
    return {};
  }),
  'model.load': bind(REQUESTS['model.load'], ({ model }, { exchange, signal }) => exchange.move(model, 'load', signal)),
  'model.offload': bind(REQUESTS['model.offload'], ({ model }, { exchange, signal }) =>
    exchange.move(model, 'offload', signal),
  ),
  'model.release': bind(REQUESTS['model.release'], ({ model }, { exchange, signal }) =>
    exchange.move(model, 'release', signal),
  ),
  'host.drain': bind(REQUESTS['host.drain'], (_params, { exchange }) => {
    exchange.drain();
    return { isDraining: true, running: 0 };
  }),
  'host.resume': bind(REQUESTS['host.resume'], (_params, { exchange }) => {
    exchange.resume();
    return { isDraining: false, running: 0 };
  }),
} satisfies Record<Exclude<Method, 'hello'>, BoundMethod>;

/** The method of this name; undefined for one this release does not know. */
export function methodNamed(name: string): BoundMethod | undefined {
  return Object.hasOwn(METHODS, name) ? METHODS[name as keyof typeof METHODS] : undefined; // narrowed by hasOwn
}

function bind<P extends z.ZodType, R extends z.ZodType>(
  { role, params }: { role: Role; params: P; result: R },
  run: (params: z.output<P>, context: MethodContext) => z.output<R> | Promise<z.output<R>>,
): BoundMethod {
  return {
    role,
    parse: (raw) => {
      const parsed = params.safeParse(raw);
      if (!parsed.success) return { success: false, error: parsed.error };
      // Every result in REQUESTS is an object schema; `object` is all that the reply needs to know.
      return { success: true, call: async (context) => (await run(parsed.data, context)) as object };
    },
  };
}
