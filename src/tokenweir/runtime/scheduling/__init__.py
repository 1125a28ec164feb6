"""Who is decoded when: admission by bytes, priorities, deadlines, and a controller that keeps tokens coming."""
