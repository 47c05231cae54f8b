/**
 * For `vi.setConfig` at the top of a file whose tests mostly wait, each for processes of its own: a few of them run at a
 * time. What one of them leaves open is then found at the end of the file, not of the test.
 */
export const SEVERAL_AT_ONCE = { sequence: { concurrent: true, hooks: 'stack' }, maxConcurrency: 3 } as const;
