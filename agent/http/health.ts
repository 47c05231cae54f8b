import type { ServerResponse } from 'node:http';

/** Why the host takes no work at the moment; empty when it does. */
export type Readiness = () => readonly string[];

/** The one word that anybody may read: the process answers. */
export function sendHealth(response: ServerResponse): void {
  response.writeHead(200, { 'content-type': 'text/plain' }).end('ok\n');
}

/** 200 when jobs would be granted, 503 with the reasons when not. */
export function sendReadiness(response: ServerResponse, readiness: Readiness): void {
  const reasons = readiness();
  response.writeHead(reasons.length === 0 ? 200 : 503, { 'content-type': 'application/json' });
  response.end(JSON.stringify({ ready: reasons.length === 0, reasons }));
}
