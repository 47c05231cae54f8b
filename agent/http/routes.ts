import type { IncomingMessage, ServerResponse } from 'node:http';
import { Uuid } from '../../shared/job.ts';
import { PAIR_PATH } from '../../shared/protocol.ts';
import type { TokenRef } from '../job/session.ts';
import type { ResultStore } from '../job/result-store.ts';
import type { Readiness } from './health.ts';
import { sendHealth, sendReadiness } from './health.ts';
import type { InputParts } from './inputs.ts';
import { receiveInput } from './inputs.ts';
import type { MetricFacts } from './metrics.ts';
import { sendMetrics } from './metrics.ts';
import type { Redeem } from './pair.ts';
import { pair } from './pair.ts';
import { sendProblem } from './problem.ts';
import { sendResult } from './results.ts';

export type RouteParts = InputParts & {
  results: ResultStore;
  readiness: Readiness;
  metrics: () => MetricFacts;
  redeem: Redeem;
};

/** What a request must show: a token, or the code of an invite, which is counted while it is looked at. */
export type Access = { token: () => Promise<TokenRef>; pairing: <T>(redeem: () => Promise<T>) => Promise<T> };

type Exchange = { request: IncomingMessage; response: ServerResponse; token: TokenRef; parts: RouteParts };
type Route = {
  methods: readonly string[];
  path: RegExp;
  answer: (exchange: Exchange, id: string) => Promise<void> | void;
};

const READ = ['GET', 'HEAD'];

/** Every route that needs a token; only `/healthz` and `/v1/pair` do not. No GET changes anything. */
export const ROUTES: readonly Route[] = [
  { methods: READ, path: /^\/readyz$/, answer: ({ response, parts }) => sendReadiness(response, parts.readiness) },
  { methods: READ, path: /^\/metrics$/, answer: ({ response, parts }) => sendMetrics(response, parts.metrics) },
  {
    methods: ['PUT'],
    path: /^\/v1\/inputs\/([^/]{1,100})$/,
    answer: ({ token, parts, ...http }, sha256) => receiveInput(http, { token, sha256, parts }),
  },
  { methods: READ, path: /^\/v1\/results\/([^/]{1,100})$/, answer: (exchange, id) => result(exchange, id, 'image') },
  {
    methods: READ,
    path: /^\/v1\/results\/([^/]{1,100})\/preview$/,
    answer: (exchange, id) => result(exchange, id, 'preview'),
  },
];

/** Answers one request. The token is asked for before the path is looked at: without one every path looks the same. */
export async function route({ request, response, parts }: Omit<Exchange, 'token'>, access: Access): Promise<void> {
  const [path = '/'] = (request.url ?? '/').split('?');
  if (path === '/healthz' && READ.includes(request.method ?? '')) return sendHealth(response);
  if (path === PAIR_PATH && request.method === 'POST') {
    return await pair({ request, response }, (asked) => access.pairing(() => parts.redeem(asked, request)));
  }
  const token = await access.token();
  for (const { methods, path: pattern, answer } of ROUTES) {
    const match = pattern.exec(path);
    if (match === null) continue;
    if (!methods.includes(request.method ?? ''))
      return sendProblem(response, { status: 405, code: 'INVALID_ARGUMENT', message: `Use ${methods.join(' or ')}.` });
    return await answer({ request, response, token, parts }, match[1] ?? '');
  }
  sendProblem(response, { status: 404, code: 'INVALID_ARGUMENT', message: 'There is nothing at this path.' });
}

function result({ token, parts, ...http }: Exchange, id: string, part: 'image' | 'preview'): Promise<void> {
  // Anything that is no id is as unknown as an id that nobody has.
  const jobId = Uuid.safeParse(id).data ?? '';
  return sendResult({ ...http, results: parts.results }, { tokenId: token.id, jobId, part });
}
