import type { z } from 'zod';
import { AppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { Frame, Role } from '../../shared/protocol.ts';
import { LIMITS } from '../../shared/limits.ts';
import { METHOD_NOT_FOUND } from '../../shared/protocol.ts';
import type { AuditEntry } from './audit.ts';
import { isAudited, objectOf } from './audit.ts';
import { cleaned, errorFrame } from './frames.ts';
import type { MethodTable } from './method-table.ts';

type Request = { id: number; method: string; params: unknown };

export type RequestDeskOptions<C extends { signal: AbortSignal }> = {
  methods: MethodTable<C>;
  role: Role;
  context: C;
  send: (frame: Frame) => void;
  /** Parameters that break their schema: the peer is at fault, and its link ends. */
  onInvalid: (method: string, error: z.ZodError) => void;
  /** More unanswered requests than the limit, likewise. */
  onTooMany: () => void;
  /** Why this request is not answered, because there were too many. */
  refusal?: ((method: string) => AppError | undefined) | undefined;
  audit?: ((entry: Pick<AuditEntry, 'action' | 'outcome' | 'object' | 'promptSha256'>) => void) | undefined;
  log: Log;
};

/** Answers the requests of one peer, each once, whatever it came through: finds the method, checks role and parameters. */
export class RequestDesk<C extends { signal: AbortSignal }> {
  readonly #options: RequestDeskOptions<C>;
  #inFlight = 0;

  constructor(options: RequestDeskOptions<C>) {
    this.#options = options;
  }

  /** Requests without an answer yet. */
  get inFlight(): number {
    return this.#inFlight;
  }

  take(request: Request): void {
    const { methods, onInvalid, onTooMany, send } = this.#options;
    const { id, method, params } = request;
    if (this.#inFlight >= LIMITS.requestsInFlight.value) return onTooMany();
    const known = Object.hasOwn(methods, method) ? methods[method] : undefined;
    if (known === undefined) {
      const message = `unknown method ${cleaned(method, 60)}`;
      return send(errorFrame(id, new AppError('INVALID_ARGUMENT', message), METHOD_NOT_FOUND));
    }
    const parsed = known.parse(params);
    if (!parsed.success) return onInvalid(method, parsed.error);
    const refusal = this.#options.refusal?.(method);
    if (refusal !== undefined) return send(errorFrame(id, refusal));
    const call = (): Promise<object> => parsed.call(this.#options.context);
    void this.#answer(request, { role: known.role, params: parsed.params, call }); // it catches everything itself
  }

  async #answer(
    { id, method }: Request,
    { role, params, call }: { role: Role; params: unknown; call: () => Promise<object> },
  ): Promise<void> {
    const { send, context, log, audit } = this.#options;
    const note = (outcome: string): void => {
      if (audit !== undefined && isAudited(method)) audit({ action: method, ...objectOf(params), outcome });
    };
    this.#inFlight += 1;
    try {
      if (role === 'operator' && this.#options.role !== 'operator') throw notAllowed(method);
      const result = await call();
      note('ok');
      send({ jsonrpc: '2.0', id, result });
    } catch (error) {
      note(error instanceof AppError ? error.code : 'INTERNAL');
      if (context.signal.aborted) return;
      if (!(error instanceof AppError)) log.error({ event: 'request-failed', method, err: error });
      send(errorFrame(id, error instanceof AppError ? error : defect(method)));
    } finally {
      this.#inFlight -= 1;
    }
  }
}

function notAllowed(method: string): AppError {
  return new AppError(
    'AUTH_FAILED',
    `${method} needs a token of role operator, and this one has role viewer. ` +
      'Make one on that host with `gantry-agent tokens add NAME --role operator`.',
  );
}

function defect(method: string): AppError {
  return new AppError(
    'INTERNAL',
    `${method} failed in the agent. Its log on that host has the details (event request-failed).`,
  );
}
