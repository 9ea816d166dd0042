// Reads { texts, limits } as JSON from the standard input and writes name and shares of each text's schedule, null where it is none.
import { readFileSync } from "node:fs";
import { parse } from "../../aig/ui/parts/schedules.js";

const { texts, limits } = JSON.parse(readFileSync(0, "utf8"));
const answer = (schedule) => schedule && { name: schedule.name, shares: Array.from({ length: 257 }, (_, i) => schedule.share(i / 256)) };
process.stdout.write(JSON.stringify(texts.map((text) => answer(parse(text, limits)))));
