import type { ServerResponse } from 'node:http';
import type { ErrorCode } from '../../shared/errors.ts';

export type Problem = { status: number; code: ErrorCode; message: string };

/** Answers with an error as JSON. What is left of the request's body is not read: the connection ends with the answer. */
export function sendProblem(response: ServerResponse, { status, code, message }: Problem): void {
  response.writeHead(status, { 'content-type': 'application/json', connection: 'close' });
  response.end(JSON.stringify({ error: { code, message } }));
}
