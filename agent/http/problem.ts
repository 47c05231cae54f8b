import type { ServerResponse } from 'node:http';
import type { ErrorCode } from '../../shared/errors.ts';

export type Problem = { status: number; code: ErrorCode; message: string };

/** Answers with an error as JSON. */
export function sendProblem(response: ServerResponse, { status, code, message }: Problem): void {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify({ error: { code, message } }));
}
